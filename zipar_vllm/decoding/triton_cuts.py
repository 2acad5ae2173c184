"""Which logits a token is drawn from, in Triton: min-p, top-k and top-p without sorting.

A cut is a threshold, found by bisection over the numbers that float32 has, taken as integers of the
same order: the highest that enough logits, or logits of enough probability, reach.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

ALL = tl.constexpr(2**31 - 1)


@triton.jit
def cut(scaled, highest, top_k, top_p, min_p, num_codes, BLOCK: tl.constexpr):
    """What min-p, top-k and top-p leave, one after the other.

    Returns a threshold, and how many of the values that equal it are kept: those above all are.
    """
    least = float("-inf")
    if min_p > 0:
        least = highest + libdevice.log(min_p)
    low = _key(least)
    kept = num_codes
    quota = ALL
    if (top_k > 0) & (top_k < num_codes):
        if min_p > 0:
            kept, _ = _measure(scaled, least, highest, num_codes, False, BLOCK)
        limit = top_k.to(tl.int64)
        low, quota, kept = _bisect(
            scaled, highest, low, kept, kept.to(tl.int64), limit, num_codes, False, BLOCK
        )
    if top_p < 1:
        threshold = _number(low)
        reached, mass = _measure(scaled, threshold, highest, num_codes, True, BLOCK)
        total = mass
        if quota < ALL:  # top-k left some out that equal its threshold
            total -= (reached - kept).to(tl.int64) * _weigh(threshold, highest)
        limit = tl.ceil(top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64)
        low, quota, kept = _bisect(
            scaled, highest, low, reached, mass, limit, num_codes, True, BLOCK
        )
    return _number(low), quota


@triton.jit
def _bisect(
    scaled,
    highest,
    low,
    reached,
    mass,
    limit,
    num_codes,
    WEIGHED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find the highest threshold that values of a mass of ``limit`` reach, from ``low`` on.

    ``reached`` values of ``mass`` reach ``low``. Returns the threshold's key, how many values that
    equal it make up the limit (``ALL`` if they are as many as there are), and how many do in all.
    """
    high = _key(highest) + 1
    above = 0
    mass_above = limit * 0
    while (low + 1 < high) & (reached - above > 1) & (mass > limit):
        middle = (low & high) + ((low ^ high) >> 1)
        count, weight = _measure(scaled, _number(middle), highest, num_codes, WEIGHED, BLOCK)
        if weight >= limit:
            low = middle
            reached = count
            mass = weight
        else:
            high = middle
            above = count
            mass_above = weight
    quota = ALL
    equal = reached - above
    if (mass > limit) & (equal > 1):  # all of one value, and so of one weight
        weight = (mass - mass_above) // equal
        needed = ((limit - mass_above + weight - 1) // weight).to(tl.int32)
        if needed < equal:
            quota = needed
            reached = above + needed
    return low, quota, reached


@triton.jit
def _measure(scaled, threshold, highest, num_codes, WEIGHED: tl.constexpr, BLOCK: tl.constexpr):
    """How many values reach a threshold, and their mass: their number too, or their weights."""
    column = tl.arange(0, BLOCK)
    counts = tl.zeros([BLOCK], tl.int32)
    masses = tl.zeros([BLOCK], tl.int64)
    for start in range(0, num_codes, BLOCK):
        code = start + column
        inside = code < num_codes
        value = tl.load(scaled + code, mask=inside, other=float("-inf"))
        reaches = inside & (value >= threshold)
        counts += reaches.to(tl.int32)
        if WEIGHED:
            masses += tl.where(reaches, _weigh(value, highest), 0)
    count = tl.sum(counts, 0)
    mass = count.to(tl.int64)
    if WEIGHED:
        mass = tl.sum(masses, 0)
    return count, mass


@triton.jit
def _weigh(value, highest):
    """Probability over that of the highest value, as an integer, as ``core.sampling`` has it.

    In two halves, as GPUs are slow at turning float32 into int64.
    """
    weight = libdevice.exp(value - highest) * 2.0**18
    whole = weight.to(tl.int32)
    rest = ((weight - whole.to(tl.float32)) * 2.0**18).to(tl.int32)
    return (whole.to(tl.int64) << 18) + rest


@triton.jit
def _key(number):
    """float32 as integers of the same order."""
    bits = number.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _number(key):
    """The inverse of ``_key``."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
