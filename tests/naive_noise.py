"""The noise of a token in Python's own integers, one at a time."""

import math

MAX_SEED = 2**63 - 1
U64 = 2**64 - 1
U32 = 2**32 - 1


def naive_noise(seed, position, token):
    """The noise in Python's own integers."""
    x = (seed + (position + 1) * 0x9E3779B97F4A7C15) & U64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & U64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & U64
    x ^= x >> 31
    y = naive_lowbias32((token * 0x9E3779B1 + (x & U32)) & U32)
    return noise_of(naive_lowbias32(y ^ (x >> 32)))


def noise_of(bits):
    """Gumbel noise of 32 random bits."""
    return -math.log(-math.log1p(-(U32 - bits + 0.5) / 2**32))


def naive_lowbias32(x):
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & U32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & U32
    return x ^ (x >> 16)
