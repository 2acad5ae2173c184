"""The noise against naive code and against statistics."""

import math

import numpy as np
import pytest
import torch

from tests.naive_noise import MAX_SEED, U32, U64, naive_noise, noise_of
from zipar_vllm.core import cpu_sampling
from zipar_vllm.core.noise import gumbel_noise, uniform_noise

# Seed, position, token, noise.
PINNED = [
    (0, 0, 0, 0.357266),
    (0, 0, 1, 1.845197),
    (0, 1, 0, 2.348501),
    (1, 0, 0, 0.028722),
    (7, 575, 16383, 0.532867),
    (4294967296, 12, 345, 6.024451),
    (MAX_SEED, 8099, 32767, -0.298808),
]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, MAX_SEED - 1, MAX_SEED])
@pytest.mark.parametrize("position", [0, 1, 8099])
def test_noise_is_the_hash_it_says(seed, position):
    count = 500
    noise = gumbel_noise(torch.tensor([seed]), torch.tensor([position]), count)[0]
    assert noise.isfinite().all()
    expected = [naive_noise(seed, position, token) for token in range(count)]
    assert noise.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("seed", "position", "token", "value"), PINNED)
def test_noise_never_changes(seed, position, token, value):
    """Pictures are named by their seeds: these numbers are a promise."""
    noise = gumbel_noise(torch.tensor([seed]), torch.tensor([position]), 8, torch.tensor([[token]]))
    assert noise.item() == pytest.approx(value, rel=1e-4, abs=1e-5)


def token_of(bits, seed, position):
    """The number, far behind any vocabulary, whose noise is made of these bits: the hash undone."""
    x = (seed + (position + 1) * 0x9E3779B97F4A7C15) & U64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & U64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & U64
    x ^= x >> 31
    y = undo_lowbias32(undo_lowbias32(bits) ^ (x >> 32))
    return (y - x) * pow(0x9E3779B1, -1, 2**32) & U32


def undo_lowbias32(x):
    x = ((x ^ (x >> 16)) * pow(0x846CA68B, -1, 2**32)) & U32
    x = ((x ^ (x >> 15) ^ (x >> 30)) * pow(0x7FEB352D, -1, 2**32)) & U32
    return x ^ (x >> 16)


def test_noise_has_32_bits_where_it_is_high():
    """All that float32 has, down to the last of 2**32 numbers; the lowest share one value."""
    high = [U32, U32 - 1, U32 - 2, U32 - 255, U32 - 256, U32 - 2**16, 2**31]
    low = [0, 1, 255, 256, 2**16]
    tokens = [token_of(bits, 5, 9) for bits in high + low]
    seed, position = torch.tensor([5]), torch.tensor([9])
    noise = gumbel_noise(seed, position, 1, torch.tensor([tokens]))[0].tolist()
    assert noise[: len(high)] == pytest.approx([noise_of(bits) for bits in high], rel=1e-6)
    assert noise[len(high) :] == pytest.approx([noise_of(max(bits, 255)) for bits in low], abs=0.03)
    assert noise[0] == pytest.approx(33 * math.log(2), rel=1e-6)


def test_high_noise_takes_values_of_its_own():
    """Of n numbers of 22 bits about n**2 / 2**23 are equal; of 13 bits a fifth would be."""
    noise = gumbel_noise(torch.full((2048,), 3), torch.arange(2048), 2048).flatten()
    high = noise[noise > 10 * math.log(2)]
    n = len(high)
    assert abs(n - 4096) < 5 * 64
    assert n - len(high.unique()) <= n**2 / 2**23 + 10


def test_noise_of_chosen_tokens_is_theirs():
    seeds, positions = torch.tensor([3, 4]), torch.tensor([5, 6])
    tokens = torch.tensor([[7, 0, 99], [1, 1, 50]])
    every = gumbel_noise(seeds, positions, 100)
    assert torch.equal(gumbel_noise(seeds, positions, 100, tokens), every.gather(1, tokens))


def uniforms(seeds, positions, count):
    return (-(-gumbel_noise(seeds, positions, count).double()).exp()).exp()


@pytest.mark.parametrize("seed", [0, 12345, MAX_SEED])
def test_noise_is_uniform_underneath(seed):
    """Kolmogorov-Smirnov at p = 0.001, over positions and over tokens."""
    positions = torch.arange(576)
    u = uniforms(torch.full((576,), seed), positions, 64).flatten().sort().values
    n = len(u)
    distance = (u - (torch.arange(n) + 0.5) / n).abs().max() + 0.5 / n
    assert distance < 1.95 / math.sqrt(n)


def test_uniform_noise_is_uniform_and_of_no_token():
    n = 20_000
    seeds, positions = torch.full((n,), 9), torch.arange(n)
    u = uniform_noise(seeds, positions).double()
    ordered = u.sort().values
    distance = (ordered - (torch.arange(n) + 0.5) / n).abs().max() + 0.5 / n
    assert distance < 1.95 / math.sqrt(n)
    of_tokens = uniforms(seeds, positions, 8)
    correlation = torch.corrcoef(torch.cat([u.unsqueeze(0), of_tokens.T]))[0, 1:]
    assert correlation.abs().max() < 5 / math.sqrt(n)


def test_seeds_positions_and_tokens_are_unrelated():
    n, count = 64, 256
    zero = torch.zeros(n, dtype=torch.int64)
    by_seed = uniforms(torch.arange(n), zero, count)
    by_position = uniforms(zero, torch.arange(n), count)
    for u in (by_seed, by_position, by_position.T):
        correlation = torch.corrcoef(u)
        correlation.fill_diagonal_(0)
        assert correlation.abs().max() < 5.5 / math.sqrt(u.shape[1])
        assert len({tuple(row) for row in u.tolist()}) == len(u)


@pytest.mark.parametrize("chosen", [False, True])
def test_the_native_code_has_the_bits_of_torch(monkeypatch, chosen):
    """Beside vectors' ends, on several threads, and of tokens that few vocabularies have."""
    assert cpu_sampling.load_library() is not None, "no compiler"
    rng = np.random.default_rng(1)
    for rows, count in [(1, 1), (3, 17), (5, 1000), (70, 1001)]:
        seeds = torch.from_numpy(rng.integers(0, MAX_SEED, rows))
        positions = torch.from_numpy(rng.integers(0, 1 << 40, rows))
        tokens = torch.from_numpy(rng.integers(0, U32, (rows, count))) if chosen else None
        native = gumbel_noise(seeds, positions, count, tokens)
        with monkeypatch.context() as patched:
            patched.setattr(cpu_sampling, "load_library", lambda: None)
            assert torch.equal(native, gumbel_noise(seeds, positions, count, tokens))


def test_the_native_code_has_torch_s_numbers_at_their_ends(monkeypatch):
    tokens = [token_of(bits, 5, 9) for bits in [0, 1, 255, 2**24 + 1, 2**31, U32 - 256, U32]]
    arguments = torch.tensor([5]), torch.tensor([9]), 1, torch.tensor([tokens])
    native = gumbel_noise(*arguments)
    monkeypatch.setattr(cpu_sampling, "load_library", lambda: None)
    assert torch.equal(native, gumbel_noise(*arguments))
