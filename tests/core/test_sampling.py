"""Sampling maths against naive code, row by row."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.naive_noise import MAX_SEED, naive_noise
from zipar_vllm.core.noise import gumbel_noise
from zipar_vllm.core.sampling import (
    LEAST_TEMPERATURE,
    OPTION_DTYPES,
    SamplingBatch,
    SamplingFlags,
    guide,
)


def naive_sample(logits, temperature, top_k, top_p, min_p, seed, position):
    """One row, in float64, a token at a time."""
    return max(
        naive_weights(logits, temperature, top_k, top_p, min_p),
        key=lambda token: logits[token] / (temperature or 1) + naive_noise(seed, position, token),
    )


def naive_weights(logits, temperature, top_k, top_p, min_p):
    """Probability of each token that may be drawn."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    if temperature == 0:
        return {order[0]: 1.0}
    best = logits[order[0]]
    order = [t for t in order if math.exp((logits[t] - best) / temperature) >= min_p]
    order = order[: top_k or None]
    weights = [math.exp((logits[t] - logits[order[0]]) / temperature) for t in order]
    kept: dict[int, float] = {}
    before = 0.0
    for token, weight in zip(order, weights, strict=True):
        if kept and top_p < 1 and before >= top_p:
            break
        kept[token] = weight
        before += weight / sum(weights)
    return {token: weight / sum(kept.values()) for token, weight in kept.items()}


def rows_of(n, count, generator_seed, **fixed):
    """Random logits and options; ``fixed`` options are the same in every row."""
    rng = np.random.default_rng(generator_seed)
    arrays = {
        "temperature": rng.choice([0.0, 0.5, 1.0, 2.0], n).astype(np.float32),
        "top_k": rng.choice([0, 1, 3, count, count + 5], n).astype(np.int64),
        "top_p": rng.choice([0.05, 0.5, 0.9, 1.0], n).astype(np.float32),
        "min_p": rng.choice([0.0, 0.0, 0.02, 0.3, 1.0], n).astype(np.float32),
        "seed": rng.integers(0, MAX_SEED, n, dtype=np.int64),
        "position": rng.integers(0, 8100, n, dtype=np.int64),
    }
    for name, value in fixed.items():
        arrays[name][:] = value
    return rng.normal(0, 3, (n, count)).astype(np.float32), arrays


def batch_of(arrays):
    options = {name: arrays[name] for name in OPTION_DTYPES}
    return SamplingBatch.of(options, arrays["position"])


def run(logits, arrays, flags=None):
    batch = batch_of(arrays)
    if flags is not None:
        batch = replace(batch, flags=replace(batch.flags, truncated=True, top=flags.top))
    return batch.sample(torch.from_numpy(logits)).tolist()


def test_guidance():
    conditional = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    unconditional = torch.tensor([[0.0, 4.0], [0.0, 4.0], [0.0, 4.0]])
    guided = guide(conditional, unconditional, torch.tensor([0.0, 1.0, 3.0]))
    assert guided.tolist() == [[0.0, 4.0], [1.0, 2.0], [3.0, -2.0]]


def test_flags():
    def flags(temperature, top_k, top_p, min_p=(0, 0, 0)):
        return SamplingFlags.of(
            {
                "temperature": np.array(temperature, dtype=np.float32),
                "top_k": np.array(top_k),
                "top_p": np.array(top_p, dtype=np.float32),
                "min_p": np.array(min_p[: len(top_p)], dtype=np.float32),
            }
        )

    assert flags([0, 0], [5, 0], [0.5, 1]) == SamplingFlags(all_greedy=True)
    assert flags([1, 0], [0, 5], [1, 0.5]) == SamplingFlags(False, False, 0, mixed=True)
    assert flags([1, 1, 0], [5, 7, 99], [1, 1, 1]) == SamplingFlags(False, True, 7, mixed=True)
    assert flags([1, 1], [5, 0], [1, 1]) == SamplingFlags(False, True, 0)
    assert flags([1], [0], [0.9]) == SamplingFlags(False, True, 0)
    assert flags([1, 0], [0, 0], [1, 1], [0.1, 0]) == SamplingFlags(
        False, False, 0, min_p=True, mixed=True
    )
    assert flags([1, 0], [0, 0], [1, 1], [0, 0.1]) == SamplingFlags(False, mixed=True)


def test_temperature_zero_takes_the_highest_logit():
    logits, arrays = rows_of(20, 50, 0, temperature=0)
    assert run(logits, arrays) == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-37, 1e-31])
@pytest.mark.parametrize("cuts", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {}])
def test_a_temperature_that_underflows_takes_the_highest_logit(temperature, cuts):
    """Divided by it, logits would overflow, and infinities differ by no number."""
    fixed = {"temperature": temperature, "top_k": 0, "top_p": 1, "min_p": 0, **cuts}
    logits, arrays = rows_of(20, 50, 0, **fixed)
    assert (arrays["temperature"] > 0).all()
    arrays["temperature"][::2] = 1.0
    assert run(logits, arrays)[1::2] == logits[1::2].argmax(axis=1).tolist()
    probabilities = batch_of(arrays).probabilities(torch.from_numpy(logits))
    assert probabilities[1::2].max(dim=1).values.tolist() == [1.0] * 10
    assert probabilities.sum(dim=1).tolist() == pytest.approx([1.0] * 20)
    arrays["temperature"][:] = temperature
    assert batch_of(arrays).flags.all_greedy


@pytest.mark.parametrize("cuts", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {}])
def test_the_least_temperature_still_divides(cuts):
    fixed = {"temperature": LEAST_TEMPERATURE, "top_k": 0, "top_p": 1, "min_p": 0, **cuts}
    logits, arrays = rows_of(20, 50, 0, **fixed)
    assert run(logits * 1e4, arrays) == logits.argmax(axis=1).tolist()


def test_greedy_rows_stay_greedy_among_sampled_ones():
    logits, arrays = rows_of(64, 50, 1, top_k=0, top_p=1, min_p=0)
    greedy = arrays["temperature"] == 0
    assert 5 < greedy.sum() < 60
    assert np.array_equal(np.array(run(logits, arrays))[greedy], logits.argmax(axis=1)[greedy])


@pytest.mark.parametrize("generator_seed", range(6))
def test_truncation_agrees_with_the_naive_sampler(generator_seed):
    logits, arrays = rows_of(60, 40, generator_seed)
    expected = [
        naive_sample(row.astype(np.float64).tolist(), *options)
        for row, *options in zip(
            logits, *(array.astype(object).tolist() for array in arrays.values()), strict=True
        )
    ]
    assert run(logits, arrays) == expected
    assert len(set(expected)) > 10


@pytest.mark.parametrize("fixed", [{}, {"top_k": 0, "top_p": 1, "min_p": 0}, {"temperature": 0}])
def test_probabilities_are_what_is_drawn_from(fixed):
    logits, arrays = rows_of(60, 40, 7, **fixed)
    names = ("temperature", "top_k", "top_p", "min_p")
    got = batch_of(arrays).probabilities(torch.from_numpy(logits))
    for row, scores, *options in zip(
        got.tolist(), logits.tolist(), *(arrays[name].tolist() for name in names), strict=True
    ):
        weights = naive_weights(scores, *options)
        assert row == pytest.approx([weights.get(t, 0) for t in range(40)], rel=1e-4, abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.data())
def test_a_row_does_not_depend_on_its_batch(generator_seed, data):
    logits, arrays = rows_of(12, 40, generator_seed)
    whole = run(logits, arrays)
    subset = data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=12))
    part = run(logits[subset], {name: array[subset] for name, array in arrays.items()})
    assert part == [whole[row] for row in subset]


def test_a_part_of_a_batch_is_sampled_as_in_the_whole():
    logits, arrays = rows_of(12, 40, 5)
    batch, index = batch_of(arrays), torch.tensor([7, 2, 2, 11])
    part = batch[index].sample(torch.from_numpy(logits)[index])
    assert torch.equal(part, batch.sample(torch.from_numpy(logits))[index])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(4, 60))
def test_the_sorted_width_does_not_change_the_choice(generator_seed, width):
    logits, arrays = rows_of(8, 40, generator_seed)
    arrays["top_k"] = np.minimum(arrays["top_k"], 4)
    arrays["top_k"][arrays["top_k"] == 0] = 4
    assert run(logits, arrays, SamplingFlags(False, True, width, mixed=True)) == run(
        logits, arrays, SamplingFlags(False, True, 0, mixed=True)
    )


@pytest.mark.parametrize(
    ("cuts", "kept"),
    [
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_p": 0.31}, [0, 1, 2, 3]),
        ({"top_p": 0.3}, [0, 1, 2, 3]),  # 0.3 is a little more than that as float32
        ({"top_p": 0.5}, [0, 1, 2, 3, 4]),
        ({"top_k": 8, "top_p": 0.25}, [0, 1]),
    ],
)
def test_of_equal_logits_the_lowest_tokens_are_kept(cuts, kept):
    """Zeros of either sign are equal; and however wide the batch is sorted."""
    logits = np.tile(np.array([0.0, -0.0], dtype=np.float32), (300, 5))
    fixed = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, **cuts}
    _, arrays = rows_of(300, 10, 0, **fixed)
    assert sorted(set(run(logits, arrays))) == kept
    weights = batch_of(arrays).probabilities(torch.from_numpy(logits))
    assert weights[0].nonzero().flatten().tolist() == kept


@pytest.mark.parametrize("others", [{}, {"top_k": 4}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_of_equal_logits_greedy_takes_the_lowest_token(others):
    """Whatever is sampled beside it."""
    logits = np.zeros((2, 50), dtype=np.float32)
    logits[:, [7, 21, 49]] = 1.5
    _, arrays = rows_of(2, 50, 0, temperature=1, top_k=0, top_p=1, min_p=0)
    for name, value in others.items():
        arrays[name][1] = value
    arrays["temperature"][0] = 0
    assert run(logits, arrays)[0] == 7


def test_of_equal_sums_the_lowest_token_is_drawn():
    """Logits so large that the noise is lost on most of them; not in the order of the logits."""
    logits = np.full((40, 20), 2.0**27, dtype=np.float32)
    logits[:, 5] += 16  # the next number
    _, arrays = rows_of(40, 20, 0, temperature=1, top_k=15, top_p=1, min_p=0)
    sums = torch.from_numpy(logits)[:, :15] + gumbel_noise(
        torch.from_numpy(arrays["seed"]), torch.from_numpy(arrays["position"]), 15
    )
    equal = sums == sums.amax(dim=1, keepdim=True)
    assert (equal.sum(dim=1) > 1).any()
    assert run(logits, arrays) == sums.argmax(dim=1).tolist()


def test_the_smallest_top_p_keeps_the_highest_logit():
    logits, arrays = rows_of(50, 40, 3, temperature=1, top_k=0, top_p=1e-6, min_p=0)
    assert run(logits, arrays) == logits.argmax(axis=1).tolist()


def test_draws_follow_the_softmax():
    """Chi-square over many positions, 9 degrees of freedom, p = 0.001."""
    n, count = 20000, 10
    row = np.linspace(-1, 1.5, count, dtype=np.float32)
    _, arrays = rows_of(n, count, 0, temperature=0.7, top_k=0, top_p=1, min_p=0, seed=11)
    arrays["position"] = np.arange(n)
    seen = np.bincount(run(np.tile(row, (n, 1)), arrays), minlength=count)
    weights = np.exp(row.astype(np.float64) / 0.7)
    expected = n * weights / weights.sum()
    assert ((seen - expected) ** 2 / expected).sum() < 27.9
