"""Drawing a token in Triton: the highest of the logits that are left, with noise; and verifying it.

Drafts are verified as :mod:`.adaptive_window` says, but for the last bits of probabilities.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from zipar_vllm.core import noise

from .triton_cuts import ALL, cut
from .triton_noise import gumbel_noise, hash_position, random_bits, uniform

ATTEMPT_SHIFT = tl.constexpr(noise.ATTEMPT_SHIFT)


@triton.jit
def draw(
    scaled,
    highest,
    top_k,
    top_p,
    min_p,
    seed,
    position,
    attempt,
    compared,
    prediction,
    num_codes,
    DRAFTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draw a code from logits over the temperature, or have one that was drawn before verified.

    Arguments are as ``SamplingBatch`` and ``DraftColumns`` have them; the logits are overwritten.
    """
    threshold, quota = cut(scaled, highest, top_k, top_p, min_p, num_codes, BLOCK)
    code = compared
    if attempt < 1:
        hashes = hash_position(seed, position)
        code = _choose(scaled, threshold, quota, hashes, num_codes, BLOCK)
    if DRAFTED:  # noqa: SIM102  (known when it is compiled)
        if attempt >= 0:
            hashes = hash_position(seed, position + (attempt << ATTEMPT_SHIFT))
            kept = _verify(
                scaled, threshold, quota, highest, prediction, hashes, compared, num_codes, BLOCK
            )
            code = tl.where(attempt > 0, kept, code)
    return code


@triton.jit
def _choose(scaled, threshold, quota, hashes, num_codes, BLOCK: tl.constexpr):
    """The code of the highest value, with noise, of those that are left."""
    column = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    best = tl.zeros([BLOCK], tl.int32)
    equal_before = 0
    for start in range(0, num_codes, BLOCK):
        code = start + column
        value, equal_before = _keep(scaled, code, threshold, quota, equal_before, num_codes)
        value += gumbel_noise(hashes, code)
        best = tl.where(value > highest, code, best)
        highest = tl.maximum(highest, value)
    return first(highest, best, num_codes)


@triton.jit
def _verify(
    scaled,
    threshold,
    quota,
    highest,
    prediction,
    hashes,
    compared,
    num_codes,
    BLOCK: tl.constexpr,
):
    """Rejection sampling: the code that is compared with, or another that is likelier than before.

    The distribution takes the place of the previous prediction, its weights that of the logits.
    """
    column = tl.arange(0, BLOCK)
    totals = tl.zeros([BLOCK], tl.float32)
    equal_before = 0
    for start in range(0, num_codes, BLOCK):
        code = start + column
        value, equal_before = _keep(scaled, code, threshold, quota, equal_before, num_codes)
        weight = libdevice.exp(value - highest)
        tl.store(scaled + code, weight, mask=code < num_codes)
        totals += weight
    total = tl.sum(totals, 0)
    tl.debug_barrier()
    is_code = (compared >= 0) & (compared < num_codes)  # else there was no attempt before
    new = tl.div_rn(tl.load(scaled + compared, mask=is_code, other=0.0), total)
    old = tl.load(prediction + compared, mask=is_code, other=0.0)
    tl.debug_barrier()
    likeliest = tl.full([BLOCK], float("-inf"), tl.float32)
    best = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_codes, BLOCK):
        code = start + column
        inside = code < num_codes
        probability = tl.div_rn(tl.load(scaled + code, mask=inside, other=0.0), total)
        more = probability - tl.load(prediction + code, mask=inside, other=0.0)
        tl.debug_barrier()  # read before it is written
        tl.store(prediction + code, probability, mask=inside)
        value = libdevice.log(tl.maximum(more, 0.0)) + gumbel_noise(hashes, code)
        best = tl.where(value > likeliest, code, best)
        likeliest = tl.maximum(likeliest, value)
    share = uniform(random_bits(hashes, tl.full([], -1, tl.int32)))
    # Where nothing became likelier the distributions are equal, up to rounding.
    is_kept = (share * old <= new) | (tl.max(likeliest, 0) == float("-inf"))
    return tl.where(is_kept, compared, first(likeliest, best, num_codes))


@triton.jit
def _keep(scaled, code, threshold, quota, equal_before, num_codes):
    """Some codes' values, -inf for those that are cut; how many up to them equal the threshold."""
    value = tl.load(scaled + code, mask=code < num_codes, other=float("-inf"))
    kept = value >= threshold
    if quota < ALL:
        equal = (value == threshold).to(tl.int32)
        place = equal_before + tl.cumsum(equal, 0)
        kept &= (equal == 0) | (place <= quota)
        equal_before += tl.sum(equal, 0)
    return tl.where(kept, value, float("-inf")), equal_before


@triton.jit
def first(values, codes, num_codes):
    """Of the codes of the highest value, the lowest."""
    equal = tl.where(values == tl.max(values, 0), codes, num_codes - 1)
    return tl.min(equal, 0)
