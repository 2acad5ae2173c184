"""The noise of the Triton kernel against ``core/noise``; run as test_triton_sampling is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tests.interpreted import has_gpu
from zipar_vllm.core import noise as torch_noise
from zipar_vllm.decoding import triton_noise

DEVICE = torch.device("cuda" if has_gpu() else "cpu")
MAX_SEED = 2**63 - 1


@triton.jit
def store_noise(seeds, positions, bits, uniforms, noise, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    code = tl.arange(0, BLOCK)
    hashes = triton_noise.hash_position(tl.load(seeds + row), tl.load(positions + row))
    found = triton_noise.random_bits(hashes, code)
    at = row * BLOCK + code
    tl.store(bits + at, found.to(tl.int64))
    tl.store(uniforms + at, triton_noise.uniform(~found))
    tl.store(noise + at, triton_noise.gumbel_noise(hashes, code))


@pytest.mark.parametrize(
    "device", [pytest.param(DEVICE, id="here"), pytest.param("cpu", marks=pytest.mark.gpu)]
)
def test_noise_has_the_same_bits(device: torch.device | str) -> None:
    """As torch's on the same device, and on a CPU, which has other logarithms than a GPU."""
    edges = [0, 1, 2**32 - 1, 2**32, MAX_SEED - 1, MAX_SEED]
    rng = np.random.default_rng(0)
    seeds = torch.tensor([*edges, *rng.integers(0, MAX_SEED, 10)], device=DEVICE)
    positions = torch.tensor([0, 1, 8099, (3 << 32) + 5], device=DEVICE).repeat(4)
    found = torch.zeros(16, 256, dtype=torch.int64, device=DEVICE)
    uniforms, noise = torch.zeros(2, 16, 256, device=DEVICE)
    store_noise[(16,)](seeds, positions, found, uniforms, noise, BLOCK=256)
    seeds, positions = seeds.to(device), positions.to(device)
    bits = torch_noise._random_bits(seeds, positions, torch.arange(256, device=device)[None])
    assert torch.equal(found.to(device), bits)
    assert torch.equal(uniforms.to(device), torch_noise._uniform(bits ^ 0xFFFFFFFF))
    expected = torch_noise.gumbel_noise(seeds, positions, 256)
    tolerance = 0.0 if device == DEVICE else 1e-6
    torch.testing.assert_close(noise.to(device), expected, rtol=tolerance, atol=tolerance)


@triton.jit
def store_uniform(bits, uniforms, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(uniforms + at, triton_noise.uniform(tl.load(bits + at).to(tl.uint32)))


def test_uniform_numbers_at_their_ends() -> None:
    high = 2**32
    bits = torch.tensor([0, 1, 255, 2**24 + 1, 2**31, high - 257, high - 129, high - 1])
    bits, uniforms = bits.to(DEVICE), torch.zeros(8, device=DEVICE)
    store_uniform[(1,)](bits, uniforms, BLOCK=8)
    assert torch.equal(uniforms, torch_noise._uniform(bits))
