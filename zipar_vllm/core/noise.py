"""Noise that depends on nothing but a seed and a place.

The noise of a token is a hash of (seed, grid position, token), so the same seed draws the same
picture whatever the window, the batch or the rank (design of counter-based generators: Salmon
et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

import torch

from . import cpu_sampling

BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1."""

ATTEMPT_SHIFT = 32
"""The noise of a token that is drawn again is that of grid position + attempt << 32: no grid has as
many positions."""

_MASK32 = 0xFFFFFFFF


def gumbel_noise(
    seeds: torch.Tensor,
    positions: torch.Tensor,
    count: int,
    tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw standard Gumbel noise, a pure function of (seed, position, token).

    -log(-log(u)) = -log(-log1p(-v)) with v = 1 - u: where the noise is high u is near 1, of which
    float32 has 24 bits, but v near 0, of which it has all 32.

    Args:
        seeds: int64 ``[n]``.
        positions: int64 ``[n]``.
        count: Number of tokens.
        tokens: int64 ``[n, m]``, the tokens wanted; all ``count`` of them if None.

    Returns:
        float32 ``[n, m]``.
    """
    v = _complements(seeds, positions, count, tokens)
    return v.neg_().log1p_().neg_().log_().neg_()


def uniform_noise(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Draw uniform numbers in (0, 1), a pure function of (seed, position) used for no token.

    Returns:
        float32 ``[n]``.
    """
    no_token = torch.full((1, 1), -1, device=seeds.device)
    return _uniform(_random_bits(seeds, positions, no_token)).squeeze(1)


def _complements(
    seeds: torch.Tensor, positions: torch.Tensor, count: int, tokens: torch.Tensor | None
) -> torch.Tensor:
    """1 - u of (seed, position, token), in float32 ``[n, m]``."""
    library = cpu_sampling.load_library() if seeds.device.type == "cpu" else None
    if library is None:
        if tokens is None:
            tokens = torch.arange(count, device=seeds.device).unsqueeze(0)
        return _uniform(_random_bits(seeds, positions, tokens).bitwise_xor_(_MASK32))
    seeds, positions = seeds.contiguous(), positions.contiguous()
    tokens = None if tokens is None else tokens.contiguous()
    found = torch.empty(len(seeds), count if tokens is None else tokens.shape[1])
    library.zipar_complements(
        seeds.data_ptr(),
        positions.data_ptr(),
        len(seeds),
        None if tokens is None else tokens.data_ptr(),
        found.shape[1],
        found.data_ptr(),
    )
    return found


def _random_bits(
    seeds: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """32 well-mixed bits of (seed, position, token), in int64 ``[n, m]``."""
    return _hash_tokens(_hash_positions(seeds, positions), tokens)


def _uniform(bits: torch.Tensor) -> torch.Tensor:
    """32 bits as float32 in (0, 1); the nearer to 0 the finer."""
    return bits.float().add_(0.5).mul_(2**-32).clamp_(max=BELOW_ONE)


def _hash_positions(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """64 well-mixed bits of (seed, position): splitmix64's finaliser (Steele et al., 2014)."""
    x = seeds + (positions + 1) * -7046029254386353131  # the golden ratio, as splitmix64 steps
    x = (x ^ _shift_right(x, 30)) * -4658895280553007687
    x = (x ^ _shift_right(x, 27)) * -7723592293110705685
    return x ^ _shift_right(x, 31)


def _hash_tokens(hashes: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """32 well-mixed bits of (position hash, token), in int64 ``[n, m]``.

    Two rounds of the multiply-xorshift hash "lowbias32" (C. Wellons, hash-prospector, 2018), one
    for each half of the position's hash. Products of two 32-bit numbers wrap modulo 2**64, which
    leaves their low 32 bits right.
    """
    low, high = (hashes & _MASK32).unsqueeze(1), _shift_right(hashes, 32).unsqueeze(1)
    x = _lowbias32((tokens * 0x9E3779B1 + low) & _MASK32)
    return _lowbias32(x ^ high)


def _lowbias32(x: torch.Tensor) -> torch.Tensor:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK32
    return x ^ (x >> 16)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift of int64: torch's own copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
