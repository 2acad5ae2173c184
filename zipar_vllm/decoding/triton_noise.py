"""The noise of tokens, in Triton: the bits of :mod:`zipar_vllm.core.noise`."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from zipar_vllm.core import noise

BELOW_ONE = tl.constexpr(noise.BELOW_ONE)


@triton.jit
def gumbel_noise(hashes, code):
    """``core.noise.gumbel_noise`` of codes: uint64 hash of (seed, position), int32 codes."""
    value = uniform(~random_bits(hashes, code))
    return -libdevice.log(-libdevice.log1p(-value))


@triton.jit
def uniform(bits):
    """32 bits as float32 in (0, 1); the nearer to 0 the finer."""
    return tl.minimum((bits.to(tl.float32) + 0.5) * 2.0**-32, BELOW_ONE)


@triton.jit
def random_bits(hashes, code):
    """32 well-mixed bits of (position hash, code), uint32."""
    low = (hashes & 0xFFFFFFFF).to(tl.uint32)
    high = (hashes >> 32).to(tl.uint32)
    return _lowbias32(_lowbias32(code.to(tl.uint32) * 0x9E3779B1 + low) ^ high)


@triton.jit
def _lowbias32(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def hash_position(seed, position):
    """64 well-mixed bits of (seed, position), uint64."""
    x = seed.to(tl.uint64) + (position + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
