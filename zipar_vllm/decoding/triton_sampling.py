"""Sampling for GPUs, in Triton: a step's tokens in one launch, from logits to the state table.

One program draws a token: guidance, temperature, min-p, top-k, top-p, noise, the highest. What is
cut is found by bisection: of the numbers that float32 has, which is the highest that enough logits,
or logits of enough probability, reach. So nothing is sorted, and of equal logits those of the
lowest codes are kept.

Drafts are verified on the way, as :mod:`.adaptive_window` and :mod:`.drafted_window` say.

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

from .triton_draws import draw, first

MAX_BLOCK = 8192
"""Codes that a program works on at a time."""

LEAST_TEMPERATURE = tl.constexpr(sampling.LEAST_TEMPERATURE)


@dataclass(frozen=True, slots=True)
class SampleColumns:
    """What is sampled, on the device: one entry per token, of which the first ``count`` are used.

    Attributes:
        count: Integer ``[1]`` or more, of which the first is read.
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


@dataclass(frozen=True, slots=True)
class DraftColumns:
    """The drafts among what is sampled, on the device: one entry per token, draft or not.

    Attributes:
        compared: int64 ``[n]``, the ids that drafts are compared with.
        attempts: Integer ``[n]``, how often a token that rejection sampling decides on was drawn
            before; below 0 where none does.
        predictions: float32 ``[images, num_codes]``, contiguous: the distribution that each image's
            last such token was drawn from, and is after this step.
        image_tokens: Tokens of an image in the table.
        verdicts: Integer ``[n]`` or more, written: 1 where a token is the one it is compared with.
    """

    compared: torch.Tensor
    attempts: torch.Tensor
    predictions: torch.Tensor
    image_tokens: int
    verdicts: torch.Tensor


def sample(
    logits: torch.Tensor,
    columns: SampleColumns,
    tokens: torch.Tensor,
    first_id: int,
    scores: torch.Tensor | None = None,
    drafts: DraftColumns | None = None,
) -> None:
    """Draw the tokens, verify the drafts among them, and write their ids into the table.

    Args:
        logits: float32, bfloat16 or float16 ``[rows, num_codes]``; codes lie side by side.
        columns: What is sampled; no two entries have the same place.
        tokens: int64, the table's tokens, contiguous.
        first_id: Id of code 0.
        scores: float32 ``[tokens, 2]``, log-probability and rank of each of the table's tokens, as
            :func:`~zipar_vllm.decoding.sampler.score` has them; contiguous. None if nobody asks.
        drafts: None if there are none.
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
        tokens if drafts is None else drafts.compared,
        tokens if drafts is None else drafts.attempts,
        logits if drafts is None else drafts.predictions,
        tokens if drafts is None else drafts.verdicts,
        logits.stride(0),
        num_codes,
        first_id,
        1 if drafts is None else drafts.image_tokens,
        SCORED=scores is not None,
        DRAFTED=drafts is not None,
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
    compared_ids,
    attempts,
    predictions,
    verdicts,
    stride,
    num_codes,
    first_id,
    image_tokens,
    SCORED: tl.constexpr,
    DRAFTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Take entries in turn until none is left."""
    scaled = scratch + tl.program_id(0).to(tl.int64) * num_codes
    for entry in range(tl.program_id(0), tl.load(counts), tl.num_programs(0)):
        row = logits + tl.load(conditionals + entry).to(tl.int64) * stride
        unconditional = tl.load(unconditionals + entry).to(tl.int64)
        other, is_guided = logits + unconditional * stride, unconditional >= 0
        guidance = tl.load(guidance_scales + entry)
        temperature = tl.load(temperatures + entry)
        place = tl.load(places + entry).to(tl.int64)
        is_given = tl.load(givens + entry) != 0
        is_greedy = temperature < LEAST_TEMPERATURE
        attempt = tl.full([], -1, tl.int64)
        compared = tl.full([], 0, tl.int32)
        if DRAFTED:
            attempt = tl.load(attempts + entry).to(tl.int64)
            compared = (tl.load(compared_ids + entry) - first_id).to(tl.int32)
        divisor = tl.where(is_greedy, 1.0, temperature)
        peak, highest, code = _scale(
            row, other, is_guided, guidance, divisor, scaled, num_codes, BLOCK
        )
        tl.debug_barrier()  # what one thread has written others read
        if is_given:
            code = (tl.load(tokens + place) - first_id).to(tl.int32)
        elif not is_greedy:
            code = draw(
                scaled,
                highest,
                tl.load(top_ks + entry),
                tl.load(top_ps + entry),
                tl.load(min_ps + entry),
                tl.load(seeds + entry),
                tl.load(positions + entry),
                attempt,
                compared,
                predictions + place // image_tokens * num_codes,
                num_codes,
                DRAFTED,
                BLOCK,
            )
        tl.store(tokens + place, code.to(tl.int64) + first_id)
        if DRAFTED:
            tl.store(verdicts + entry, (code == compared).to(tl.int32))
        if SCORED:
            score = scores + 2 * place
            _score(row, other, is_guided, guidance, code, peak, score, num_codes, BLOCK)
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
    return tl.max(peaks, 0), tl.max(highest, 0), first(highest, best, num_codes)


@triton.jit
def _score(
    row, unconditional, is_guided, guidance, code, peak, score, num_codes, BLOCK: tl.constexpr
):
    """Write the log-probability and the rank of a code."""
    column = tl.arange(0, BLOCK)
    own = _guide(row, unconditional, is_guided, guidance, code, num_codes)
    total = tl.zeros([BLOCK], tl.float32)
    higher = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_codes, BLOCK):
        logit = _guide(row, unconditional, is_guided, guidance, start + column, num_codes)
        total += libdevice.exp(logit - peak)
        higher += (logit > own).to(tl.int32)
    logarithm = libdevice.log(tl.sum(total, 0)) + peak
    tl.store(score, own - logarithm)
    tl.store(score + 1, (tl.sum(higher, 0) + 1).to(tl.float32))
