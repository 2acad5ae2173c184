"""The Triton kernel against ``core/sampling``, which has none of its code.

Run under Triton's interpreter, or on the GPU where there is one; what only a compiler can tell is
in ``tests/benchmarks/test_gpu.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.interpreted import has_gpu
from zipar_vllm.core.sampling import (
    LEAST_TEMPERATURE,
    OPTION_DTYPES,
    SamplingBatch,
    SamplingFlags,
    guide,
)
from zipar_vllm.decoding import triton_sampling
from zipar_vllm.decoding.adaptive_window import RejectionSampling
from zipar_vllm.decoding.policy import Drafts
from zipar_vllm.decoding.sampler import score
from zipar_vllm.decoding.triton_sampling import DraftColumns, SampleColumns, sample

pytestmark = pytest.mark.slow

DEVICE = torch.device("cuda" if has_gpu() else "cpu")
MAX_SEED = 2**63 - 1
FIRST_ID = 1000
CHOICES: dict[str, list[float]] = {
    "temperature": [0.0, 1e-37, 1e-30, 0.01, 0.7, 1.0, 5.0],
    "top_p": [1e-30, 0.05, 0.3, 0.5, 0.9, 0.999999, 1.0, 1.0],
    "min_p": [0.0, 0.0, 1e-9, 0.02, 0.5, 1.0],
    "guidance_scale": [0.0, 1.0, 3.5, 7.25],
}


class Samples:
    """Random logits and options; ``fixed`` ones are the same for all ``n`` tokens."""

    def __init__(
        self,
        n: int,
        num_codes: int,
        generator_seed: int = 0,
        dtype: torch.dtype = torch.float32,
        spread: float = 3.0,
        **fixed: Any,
    ) -> None:
        rng = np.random.default_rng(generator_seed)
        self.num_codes, self.n = num_codes, n
        self.rows = 2 * n + 3
        numbers = rng.normal(0, spread, (self.rows, num_codes))
        self.logits = torch.from_numpy(numbers).to(dtype)
        self.arrays: dict[str, Any] = {
            name: rng.choice(choices, n).astype(np.float32) for name, choices in CHOICES.items()
        }
        top_ks = [0, 0, 1, 2, num_codes // 2, num_codes - 1, num_codes, num_codes + 5, 10**6]
        self.arrays["top_k"] = rng.choice(top_ks, n)
        self.arrays["seed"] = rng.integers(0, MAX_SEED, n, dtype=np.int64, endpoint=True)
        self.arrays["position"] = rng.integers(0, 8100, n, dtype=np.int64)
        for name, value in fixed.items():
            self.arrays[name][:] = value
        rows = rng.permutation(self.rows)
        self.arrays["conditional"] = rows[:n]
        self.arrays["unconditional"] = np.where(rng.random(n) < 0.5, rows[n : 2 * n], -1)
        self.arrays["places"] = rng.permutation(4 * n)[:n]
        self.arrays["given"] = np.zeros(n, dtype=np.int64)

    def columns(self, count: int | None = None, device: torch.device = DEVICE) -> SampleColumns:
        columns = {name: torch.from_numpy(array).to(device) for name, array in self.arrays.items()}
        number = torch.tensor([self.n if count is None else count], device=device)
        return SampleColumns(count=number, **columns)

    def draw(self, count: int | None = None, scores: torch.Tensor | None = None) -> torch.Tensor:
        """The table's tokens after the kernel; -1 where it wrote nothing."""
        tokens = torch.full((4 * self.n,), -1, device=DEVICE)
        columns = self.columns(count)
        sample(self.logits.to(DEVICE), columns, tokens, FIRST_ID, scores)
        return tokens

    def guided(self, device: torch.device = DEVICE) -> torch.Tensor:
        columns, logits = self.columns(device=device), self.logits.to(device)
        own, other = logits[columns.conditional].float(), columns.unconditional
        guided = guide(own, logits[other.clamp(min=0)].float(), columns.guidance_scale)
        return torch.where((other >= 0).unsqueeze(1), guided, own)

    def batch(self, device: torch.device = DEVICE) -> SamplingBatch:
        options = {name: self.arrays[name] for name in OPTION_DTYPES}
        return SamplingBatch.of(options, self.arrays["position"], device)

    def expected(self, device: torch.device = DEVICE) -> torch.Tensor:
        return self.batch(device).sample(self.guided(device))

    def check(self, device: torch.device = DEVICE) -> None:
        """Against ``core/sampling`` on a device."""
        drawn = self.draw()[torch.from_numpy(self.arrays["places"]).to(DEVICE)]
        assert (drawn - FIRST_ID).tolist() == self.expected(device).tolist()


@pytest.fixture(params=[8, triton_sampling.MAX_BLOCK])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary in many blocks, or in one."""
    monkeypatch.setattr(triton_sampling, "MAX_BLOCK", request.param)


@pytest.mark.usefixtures("block")
@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 5),
    num_codes=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    spread=st.sampled_from([0.0, 0.5, 3.0, 30.0]),
)
def test_any_mix(n: int, num_codes: int, seed: int, dtype: torch.dtype, spread: float) -> None:
    Samples(n, num_codes, seed, dtype, spread).check()


@pytest.mark.usefixtures("block")
@settings(max_examples=15, deadline=None)
@given(
    num_codes=st.integers(2, 30),
    seed=st.integers(0, 2**32),
    levels=st.integers(1, 4),
    masked=st.booleans(),
)
def test_equal_and_infinite_logits(num_codes: int, seed: int, levels: int, masked: bool) -> None:
    """Few values, zeros of both signs, and codes that cannot be drawn: none is guided."""
    samples = Samples(4, num_codes, seed)
    samples.arrays["unconditional"][:] = -1
    rng = np.random.default_rng(seed)
    values = np.array([0.0, -0.0, 1.5, -2.0, 0.25])[: levels + 1]
    logits = rng.choice(values, (samples.rows, num_codes)).astype(np.float32)
    if masked:
        logits[:, rng.permutation(num_codes)[1:][: num_codes // 2]] = -np.inf
    samples.logits = torch.from_numpy(logits)
    samples.check()


@pytest.mark.parametrize(
    ("cuts", "kept"), [({"top_k": 5}, 5), ({"top_p": 0.7}, 5), ({"top_k": 4, "top_p": 0.6}, 3)]
)
def test_all_but_the_last_of_equal_logits(cuts: dict[str, Any], kept: int) -> None:
    """Of six; each that is left is drawn at times."""
    fixed = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **cuts}
    samples = Samples(24, 6, 0, torch.float32, 0.0, **fixed)
    samples.check()
    assert samples.expected().unique().tolist() == list(range(kept))


@pytest.mark.parametrize("min_p", [0.3, 0.9])
def test_fewer_left_by_min_p_than_top_k_asks_for(min_p: float) -> None:
    """What top-p adds up is of those that are left."""
    fixed: dict[str, Any] = {"temperature": 1.0, "top_k": 25, "top_p": 0.6, "min_p": min_p}
    samples = Samples(16, 30, 0, torch.float32, 0.5, **fixed)
    samples.check()
    assert len(samples.expected().unique()) > 3


@pytest.mark.parametrize(
    "fixed",
    [
        {"top_k": 2048, "top_p": 1.0, "min_p": 0.0},
        {"top_k": 0, "top_p": 0.9, "min_p": 0.0},
        {"top_k": 1000, "top_p": 0.8, "min_p": 0.0},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.001},
        {"temperature": 0.0},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_vocabularies_of_published_models(fixed: dict[str, Any], dtype: torch.dtype) -> None:
    """Emu3's; bfloat16 has hundreds of equal logits there."""
    options: dict[str, Any] = {"temperature": 1.0, **fixed}
    Samples(3, 32768, 1, dtype, **options).check()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gpu_draws_what_a_cpu_draws(dtype: torch.dtype) -> None:
    """Their logarithms and exponentials differ in the last bits, which decide on no token here."""
    Samples(200, 1000, 7, dtype).check(torch.device("cpu"))


def test_a_slice_of_a_wider_row() -> None:
    """Image tokens amid a vocabulary, at no round address."""
    samples = Samples(3, 50)
    wide = torch.full((samples.rows, 77), 99.0)
    wide[:, 13:63] = samples.logits
    samples.logits = wide[:, 13:63]
    samples.check()


def test_sampled_tokens_differ() -> None:
    """Else the comparisons above would say little."""
    fixed: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert len(set(Samples(40, 40, 0, **fixed).draw().tolist())) > 15


def test_entries_past_the_count_write_nothing() -> None:
    samples = Samples(6, 20, 2)
    places = samples.arrays["places"]
    drawn = samples.draw(count=4)
    assert set((drawn >= 0).nonzero().flatten().tolist()) == set(places[:4].tolist())
    assert (drawn[places[:4]] - FIRST_ID).tolist() == samples.expected()[:4].tolist()
    assert (samples.draw(count=0) == -1).all()


@pytest.mark.usefixtures("block")
def test_scores() -> None:
    """Of what is drawn and of what is given; neither temperature nor cuts change them."""
    samples = Samples(9, 30, 3, spread=1.0)
    samples.arrays["given"][::3] = 1
    places = torch.from_numpy(samples.arrays["places"]).to(DEVICE)
    tokens = torch.full((36,), -1, device=DEVICE)
    given_codes = torch.arange(0, 27, 3, device=DEVICE)
    tokens[places] = given_codes + FIRST_ID
    scores = torch.full((36, 2), -9.0, device=DEVICE)
    sample(samples.logits.to(DEVICE), samples.columns(), tokens, FIRST_ID, scores)
    codes = samples.expected()
    codes[::3] = given_codes[::3]
    assert (tokens[places] - FIRST_ID).tolist() == codes.tolist()
    expected = score(samples.guided(), codes)
    torch.testing.assert_close(scores[places], expected, rtol=1e-6, atol=1e-5)
    assert scores[places, 1].tolist() == expected[:, 1].tolist()
    assert (scores == -9).all(dim=1).sum() == 27


def test_numbers_that_are_none_stay_within_the_vocabulary() -> None:
    """As a model's that overflowed: what is drawn means nothing, but has an embedding."""
    samples = Samples(8, 20)
    samples.logits[:] = float("nan")
    with np.errstate(invalid="ignore"):
        drawn = samples.draw()[torch.from_numpy(samples.arrays["places"]).to(DEVICE)] - FIRST_ID
    assert ((drawn >= 0) & (drawn < 20)).all()


def test_flags_change_nothing() -> None:
    """The kernel knows none: whatever the batch, a token is its own row's and options'."""
    samples = Samples(12, 40, 6)
    most = SamplingFlags(all_greedy=False, truncated=True, top=0, min_p=True, mixed=True)
    batch = replace(samples.batch(), flags=most)
    places = torch.from_numpy(samples.arrays["places"]).to(DEVICE)
    assert (samples.draw()[places] - FIRST_ID).tolist() == batch.sample(samples.guided()).tolist()


def with_drafts(samples: Samples, tokens: torch.Tensor, drafts: DraftColumns) -> torch.Tensor:
    """The codes that the kernel writes."""
    sample(samples.logits.to(DEVICE), samples.columns(), tokens, FIRST_ID, None, drafts)
    return tokens[torch.from_numpy(samples.arrays["places"]).to(DEVICE)] - FIRST_ID


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_drafts_are_verified_as_elsewhere(spread: float) -> None:
    """New ones, ones drawn before, and tokens that are compared only; greedy, cut and guided."""
    n, num_codes = 24, 12
    first, second = (Samples(n, num_codes, 5, spread=spread) for _ in range(2))
    noise = np.random.default_rng(9).normal(0, 0.5, first.logits.shape)
    second.logits = first.logits + torch.from_numpy(noise).float() * (spread > 0)
    for samples in (first, second):
        samples.arrays["places"] = 4 * np.arange(n) + 3  # the last of four tokens of an image
    attempts = np.arange(n) % 4 - 1
    again = attempts > 0
    tokens = torch.zeros(4 * n, dtype=torch.int64, device=DEVICE)
    images = torch.arange(n, device=DEVICE)
    drafts = DraftColumns(
        compared=tokens[3::4].clone(),
        attempts=torch.zeros(n, dtype=torch.int32, device=DEVICE),
        predictions=torch.full((n, num_codes), float("nan"), device=DEVICE),
        image_tokens=4,
        verdicts=torch.full((n + 1,), -9, dtype=torch.int32, device=DEVICE),
    )
    drawn = with_drafts(first, tokens, drafts)
    assert drawn.tolist() == first.expected().tolist()
    verification = RejectionSampling(n, num_codes, torch.device(DEVICE))
    nothing = np.zeros(n, dtype=np.int64)
    batch = first.batch()
    verification.verify(Drafts(images, first.guided(), drawn, drawn, nothing, batch))
    is_sampled = batch.temperature >= LEAST_TEMPERATURE
    expected = batch.probabilities(first.guided())
    torch.testing.assert_close(drafts.predictions[is_sampled], expected[is_sampled])

    plain, index = second.expected(), torch.from_numpy(np.flatnonzero(attempts >= 0)).to(DEVICE)
    fed = torch.where(images % 8 == 0, plain, (plain + 1) % num_codes)
    compared = torch.where(torch.from_numpy(again).to(DEVICE), drawn, fed)
    drafts = replace(
        drafts, compared=compared + FIRST_ID, attempts=torch.from_numpy(attempts).to(DEVICE)
    )
    found = with_drafts(second, tokens, drafts)
    codes, accepted = verification.verify(
        Drafts(
            images[index],
            second.guided()[index],
            plain[index],
            compared[index],
            attempts[attempts >= 0],
            second.batch()[index],
        )
    )
    plain[index] = codes
    assert found.tolist() == plain.tolist()
    verdicts = drafts.verdicts[:n].cpu().numpy()
    assert verdicts.tolist() == (plain == compared).int().tolist()
    assert verdicts[again].tolist() == [
        own for own, is_old in zip(accepted, again[attempts >= 0], strict=True) if is_old
    ]
    assert drafts.verdicts[n] == -9
    if spread:
        assert 0 < verdicts[again].mean() < 1
        assert 0 < verdicts[attempts < 0].mean() < 1
