"""Sampling for GPUs, in Triton: a step's tokens in one launch, from logits to the state table.

One program draws a token: guidance, temperature, min-p, top-k, top-p, noise, the highest. What is
cut is found by bisection: of the numbers that float32 has, which is the highest that enough logits,
or logits of enough probability, reach. So nothing is sorted, and of equal logits those of the
lowest codes are kept.

Tokens are those of :mod:`zipar_vllm.core.sampling`, which says what each option means: every sum,
product and quotient is rounded as there, the noise has the same bits, and probabilities are added
up as integers. Logarithms and exponentials are CUDA's, as torch's are on such a device; a CPU's may
differ in the last bit.

Launches depend on shapes alone and nothing is read by the host, so they may be captured. It imports
torch, triton and ``core`` only.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from zipar_vllm.core import sampling

from .triton_cuts import ALL, cut
from .triton_noise import gumbel_noise, hash_position

MAX_BLOCK = 8192
"""Codes that a program works on at a time."""

LEAST_TEMPERATURE = tl.constexpr(sampling.LEAST_TEMPERATURE)


@dataclass(frozen=True, slots=True)
class SampleColumns:
    """What is sampled, on the device: one entry per token, of which the first ``count`` are used.

    Attributes:
        count: Integer ``[1]``.
        conditional: Integer ``[n]``, which row of the logits is the token's.
        unconditional: Integer ``[n]``, the same of its unconditional lane; below 0 if it has none.
        places: Integer ``[n]``, where the token stands among the table's tokens.
        given: Integer ``[n]``, other than 0 where the token stands there already.
        guidance_scale: float32 ``[n]``.
        seed, position: int64 ``[n]``, what keys the noise; see ``SamplingBatch``.
        temperature, top_p, min_p: float32 ``[n]``, as in ``SamplingBatch``.
        top_k: Integer ``[n]``, as in ``SamplingBatch``.
    """

    count: torch.Tensor
    conditional: torch.Tensor
    unconditional: torch.Tensor
    places: torch.Tensor
    given: torch.Tensor
    guidance_scale: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor


def sample(
    logits: torch.Tensor,
    columns: SampleColumns,
    tokens: torch.Tensor,
    first_id: int,
    scores: torch.Tensor | None = None,
) -> None:
    """Draw the tokens and write their ids into the table; with ``scores``, these too.

    Args:
        logits: float32, bfloat16 or float16 ``[rows, num_codes]``; codes lie side by side.
        columns: What is sampled; no two entries have the same place.
        tokens: int64, the table's tokens, contiguous.
        first_id: Id of code 0.
        scores: float32 ``[tokens, 2]``, log-probability and rank of each of the table's tokens, as
            :func:`~zipar_vllm.decoding.sampler.score` has them; contiguous. None if nobody asks.
    """
    num_codes = logits.shape[1]
    block = min(triton.next_power_of_2(num_codes), MAX_BLOCK)
    programs = min(len(columns.places), _most_programs(logits.device))
    sample_tokens[(programs,)](
        logits,
        tokens,
        tokens if scores is None else scores,
        logits.new_empty(programs, num_codes, dtype=torch.float32),
        columns.count,
        columns.conditional,
        columns.unconditional,
        columns.places,
        columns.given,
        columns.guidance_scale,
        columns.seed,
        columns.position,
        columns.temperature,
        columns.top_k,
        columns.top_p,
        columns.min_p,
        logits.stride(0),
        num_codes,
        first_id,
        SCORED=scores is not None,
        BLOCK=block,
        num_warps=max(4, block // 256),
        enable_fp_fusion=False,  # torch rounds products before it adds to them
    )


def _most_programs(device: torch.device) -> int:
    """Two per multiprocessor; without a GPU (Triton's interpreter) so few that each takes turns."""
    if device.type != "cuda":
        return 2
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit
def sample_tokens(
    logits,
    tokens,
    scores,
    scratch,
    counts,
    conditionals,
    unconditionals,
    places,
    givens,
    guidance_scales,
    seeds,
    positions,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    stride,
    num_codes,
    first_id,
    SCORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Take entries in turn until none is left."""
    scaled = scratch + tl.program_id(0).to(tl.int64) * num_codes
    for entry in range(tl.program_id(0), tl.load(counts), tl.num_programs(0)):
        row = logits + tl.load(conditionals + entry).to(tl.int64) * stride
        unconditional = tl.load(unconditionals + entry).to(tl.int64)
        guidance = tl.load(guidance_scales + entry)
        temperature = tl.load(temperatures + entry)
        place = tl.load(places + entry).to(tl.int64)
        is_given = tl.load(givens + entry) != 0
        is_greedy = temperature < LEAST_TEMPERATURE
        peak, highest, code = _scale(
            row,
            logits + unconditional * stride,
            unconditional >= 0,
            guidance,
            tl.where(is_greedy, 1.0, temperature),
            scaled,
            num_codes,
            BLOCK,
        )
        tl.debug_barrier()  # what one thread has written others read
        if is_given:
            code = (tl.load(tokens + place) - first_id).to(tl.int32)
        elif not is_greedy:
            threshold, quota = cut(
                scaled,
                highest,
                tl.load(top_ks + entry),
                tl.load(top_ps + entry),
                tl.load(min_ps + entry),
                num_codes,
                BLOCK,
            )
            hashes = hash_position(tl.load(seeds + entry), tl.load(positions + entry))
            code = _draw(scaled, threshold, quota, hashes, num_codes, BLOCK)
        tl.store(tokens + place, code.to(tl.int64) + first_id)
        if SCORED:
            logprob, rank = _score(
                row,
                logits + unconditional * stride,
                unconditional >= 0,
                guidance,
                code,
                peak,
                num_codes,
                BLOCK,
            )
            tl.store(scores + 2 * place, logprob)
            tl.store(scores + 2 * place + 1, rank)
        tl.debug_barrier()


@triton.jit
def _guide(row, unconditional, is_guided, guidance, code, num_codes):
    """Some codes' logits after guidance; -inf behind the last."""
    inside = code < num_codes
    logit = tl.load(row + code, mask=inside, other=0.0).to(tl.float32)
    if is_guided:
        other = tl.load(unconditional + code, mask=inside, other=0.0).to(tl.float32)
        logit = other + guidance * (logit - other)
    return tl.where(inside, logit, float("-inf"))


@triton.jit
def _scale(
    row,
    unconditional,
    is_guided,
    guidance,
    temperature,
    scaled,
    num_codes,
    BLOCK: tl.constexpr,
):
    """Write the logits over the temperature.

    Returns the highest logit, the same over the temperature, and its code.
    """
    column = tl.arange(0, BLOCK)
    peaks = tl.full([BLOCK], float("-inf"), tl.float32)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    best = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_codes, BLOCK):
        code = start + column
        logit = _guide(row, unconditional, is_guided, guidance, code, num_codes)
        value = tl.div_rn(logit, temperature)
        tl.store(scaled + code, value, mask=code < num_codes)
        peaks = tl.maximum(peaks, logit)
        best = tl.where(value > highest, code, best)
        highest = tl.maximum(highest, value)
    return tl.max(peaks, 0), tl.max(highest, 0), _first(highest, best, num_codes)


@triton.jit
def _first(values, codes, num_codes):
    """Of the codes of the highest value, the lowest."""
    equal = tl.where(values == tl.max(values, 0), codes, num_codes - 1)
    return tl.min(equal, 0)


@triton.jit
def _draw(scaled, threshold, quota, hashes, num_codes, BLOCK: tl.constexpr):
    """The code of the highest value, with noise, of those that are left."""
    column = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    best = tl.zeros([BLOCK], tl.int32)
    equal_before = 0
    for start in range(0, num_codes, BLOCK):
        code = start + column
        value = tl.load(scaled + code, mask=code < num_codes, other=float("-inf"))
        kept = value >= threshold
        if quota < ALL:
            equal = (value == threshold).to(tl.int32)
            place = equal_before + tl.cumsum(equal, 0)
            kept &= (equal == 0) | (place <= quota)
            equal_before += tl.sum(equal, 0)
        value = tl.where(kept, value + gumbel_noise(hashes, code), float("-inf"))
        best = tl.where(value > highest, code, best)
        highest = tl.maximum(highest, value)
    return _first(highest, best, num_codes)


@triton.jit
def _score(row, unconditional, is_guided, guidance, code, peak, num_codes, BLOCK: tl.constexpr):
    """Log-probability and rank of a code."""
    column = tl.arange(0, BLOCK)
    own = _guide(row, unconditional, is_guided, guidance, code, num_codes)
    total = tl.zeros([BLOCK], tl.float32)
    higher = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_codes, BLOCK):
        logit = _guide(row, unconditional, is_guided, guidance, start + column, num_codes)
        total += libdevice.exp(logit - peak)
        higher += (logit > own).to(tl.int32)
    logarithm = libdevice.log(tl.sum(total, 0)) + peak
    return own - logarithm, (tl.sum(higher, 0) + 1).to(tl.float32)
