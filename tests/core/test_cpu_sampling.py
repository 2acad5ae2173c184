"""The native code against torch's operations: the same tokens, and the same bits of guidance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zipar_vllm.core import cpu_sampling
from zipar_vllm.core.noise import gumbel_noise
from zipar_vllm.core.sampling import LEAST_TEMPERATURE, SamplingBatch, guide_rows, highest

DTYPES = [torch.float32, torch.bfloat16]
COUNTS = [1, 2, 63, 64, 65, 700, 5000]


def make_logits(rng, rows, count, dtype, spread):
    """Rows of unlike spread; every third has equal highest logits."""
    logits = rng.standard_normal((rows, count)) * rng.uniform(0, spread, (rows, 1))
    logits[::3, :: max(1, count // 3)] = logits[::3].max(axis=1, keepdims=True)
    return torch.from_numpy(logits).to(dtype)


def make_batch(rng, rows, temperatures, min_ps):
    options = {
        "seed": rng.integers(0, 1 << 62, rows),
        "temperature": rng.choice(temperatures, rows).astype(np.float32),
        "top_k": np.zeros(rows, dtype=np.int64),
        "top_p": np.ones(rows, dtype=np.float32),
        "min_p": rng.choice(min_ps, rows).astype(np.float32),
    }
    return SamplingBatch.of(options, rng.integers(0, 9000, rows))


def draw_natively(logits, batch):
    min_p = batch.min_p if batch.flags.min_p else None
    options = batch.temperature, LEAST_TEMPERATURE, min_p
    return cpu_sampling.draw(logits, *options, batch.seed, batch.position)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(DTYPES),
    st.sampled_from(COUNTS),
    st.sampled_from([0.0, 1.0, 30.0]),
)
def test_tokens_are_those_of_torch(number, dtype, count, spread):
    rng = np.random.default_rng(number)
    logits = make_logits(rng, 20, count, dtype, spread)
    batch = make_batch(rng, 20, [0.0, 1e-30, 1e-3, 0.3, 1.0, 2.0], [0.0, 0.0, 1e-4, 0.2, 1.0])
    assert cpu_sampling.is_served(logits), "no compiler"
    assert torch.equal(batch.sample(logits), batch._sample(logits.float()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_hardly_any_token_is_left_to_torch(dtype):
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.standard_normal((2000, 500)) * 5).to(dtype)
    batch = make_batch(rng, 2000, [0.5, 1.0], [0.0, 0.01])
    tokens, count = draw_natively(logits, batch)
    assert count == int((tokens < 0).sum()) <= 2
    sure = tokens >= 0
    assert torch.equal(tokens[sure], batch._sample(logits.float())[sure])


def test_equal_scores_are_left_to_torch():
    """Two tokens whose scores are equal in float32, by a logit made to measure."""
    batch = make_batch(np.random.default_rng(3), 1, [1.0], [0.0])
    noise = gumbel_noise(batch.seed, batch.position, 2)
    logits = torch.stack([noise[0, 1] - noise[0, 0], torch.zeros(())]).unsqueeze(0)
    assert draw_natively(logits, batch)[0].tolist() == [-1]
    assert torch.equal(batch.sample(logits), batch._sample(logits))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_no_number_is_left_to_torch(bad, temperature):
    rng = np.random.default_rng(4)
    logits = torch.from_numpy(rng.standard_normal((3, 100)).astype(np.float32))
    logits[1, 70] = bad
    batch = make_batch(rng, 3, [temperature], [0.0])
    assert draw_natively(logits, batch)[0][1] == -1
    assert torch.equal(
        batch.sample(logits), batch._sample(logits) if temperature else logits.argmax(1)
    )


def test_a_token_without_a_chance_is_not_drawn():
    logits = torch.full((50, 100), float("-inf"))
    logits[:, 40] = -3.0
    batch = make_batch(np.random.default_rng(5), 50, [1.0], [0.0])
    assert batch.sample(logits).tolist() == [40] * 50


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_the_highest_is_the_first_of_equal_ones(dtype, count):
    logits = make_logits(np.random.default_rng(6), 30, count, dtype, 4.0)
    assert torch.equal(highest(logits), logits.float().argmax(dim=-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("guided", [[], [0], [1, 3, 4], [0, 1, 2, 3, 4]])
def test_guidance_has_the_bits_of_torch(monkeypatch, dtype, guided):
    rng = np.random.default_rng(7)
    rows = torch.from_numpy(rng.standard_normal((5 + len(guided), 3000)) * 5).to(dtype)
    logits = rows[:, 100:2900]  # as the columns of image tokens are
    arguments = (
        torch.tensor(guided, dtype=torch.int64),
        torch.from_numpy(rng.uniform(0, 9, len(guided)).astype(np.float32)),
    )
    native = guide_rows(logits, *arguments)
    monkeypatch.setattr(cpu_sampling, "load_library", lambda: None)
    assert torch.equal(native, guide_rows(logits, *arguments))


def test_without_a_compiler_torch_serves(monkeypatch):
    rng = np.random.default_rng(8)
    logits, batch = make_logits(rng, 9, 300, torch.bfloat16, 5.0), make_batch(rng, 9, [1.0], [0.0])
    native = batch.sample(logits), highest(logits)
    monkeypatch.setattr(cpu_sampling, "load_library", lambda: None)
    assert not cpu_sampling.is_served(logits)
    assert torch.equal(batch.sample(logits), native[0])
    assert torch.equal(highest(logits), native[1])
