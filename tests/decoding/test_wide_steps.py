"""Wide steps: sampled in parts, and rehearsed for their memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cases import NEGATIVE, make_image
from zipar_vllm.attention.torch_attention import TorchAttention
from zipar_vllm.core.sampling import SamplingBatch, SamplingFlags
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.decoding import samples
from zipar_vllm.decoding.adaptive_window import RejectionSampling
from zipar_vllm.decoding.batch import BatchBuilder, StepBatch
from zipar_vllm.decoding.decoder import ImageDecoder
from zipar_vllm.decoding.host_step import HostStep
from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.decoding.policy import NO_INTS
from zipar_vllm.decoding.sampler import StepSampler
from zipar_vllm.decoding.samples import MAX_SAMPLES, DraftBatch, SampleBatch
from zipar_vllm.decoding.table import StateTable
from zipar_vllm.decoding.triton_sampler import TritonSampler
from zipar_vllm.prepare import ADAPTIVE

from .room import Decoded, Room

COLUMNS, CODES = 160, 100


def test_sampling_in_parts_changes_nothing(
    model_path: Callable[[bool], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of guided, adaptive and drafted images side by side, some of them scored."""
    guided: dict[str, Any] = {"unconditional": NEGATIVE, "guidance_scale": 2.0}
    sampled: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "seed": 11}
    images = {
        "greedy": make_image(True, 4, 4, window=1),
        "guided": make_image(True, 5, 3, window=1, **guided, **sampled),
        "adaptive": make_image(True, 4, 4, window=1, policy=ADAPTIVE, **guided, **sampled),
        "drafted": make_image(True, 4, 4, window=2, drafts=2, **guided, **sampled),
    }

    def draw() -> dict[str, Decoded]:
        room = Room(model_path(True))
        for name, image in images.items():
            room.add(name, image, logprobs=name in ("guided", "drafted"))
        room.run()
        return room.results

    whole = draw()
    monkeypatch.setattr(samples, "MAX_SAMPLES", 3)
    parts = draw()
    for name in images:
        assert parts[name].tokens == whole[name].tokens
        assert parts[name].steps == whole[name].steps
        scores = (torch.tensor(drawn[name].scores) for drawn in (parts, whole))
        torch.testing.assert_close(*scores)


class Recorder:
    """A model that notes what it is asked for."""

    kernel = TorchAttention(1, torch.float32)

    def __init__(self) -> None:
        self.batch: StepBatch | None = None
        self.rows = 0

    def forward(self, batch: StepBatch) -> torch.Tensor:
        self.batch = batch
        return torch.randn(batch.num_inputs, 8)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows = len(hidden)
        return torch.randn(len(hidden), COLUMNS)


def test_one_part_s_logits_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_SAMPLES", 2)
    drawn: list[weakref.ref[torch.Tensor]] = []
    sample = StepSampler.sample

    def record(self: StepSampler, logits: torch.Tensor, batch: SampleBatch) -> Any:
        drawn.append(weakref.ref(logits))
        return sample(self, logits, batch)

    class Model(Recorder):
        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            assert all(own() is None for own in drawn)
            return super().logits(hidden)

    monkeypatch.setattr(StepSampler, "sample", record)
    device, vocabulary, model = torch.device("cpu"), Vocabulary(32, CODES), Model()
    decoder = ImageDecoder(
        max_images=1, max_tokens=64, block_size=16, vocabulary=vocabulary, device=device
    )
    image = make_image(False, 8, 4, window=1)
    prompt = image.prompts.conditional
    decoder.add("image", ImageJob(image.grid, image.params, (len(prompt),)), prompt, [0, 1, 2])
    for count in (len(prompt), *[1] * 10):
        decoder.step({"image": count}, model)
    assert len(drawn) > 11


def test_parts_see_their_own_of_what_was_sent_together() -> None:
    """Where Triton compiles for it, at multiples of 16 bytes: no part is compiled for anew."""
    rng, device, count = np.random.default_rng(0), torch.device("cpu"), 2 * MAX_SAMPLES + 70
    vocabulary = Vocabulary(32, CODES)
    table = StateTable(4, 400, 16, vocabulary, device)
    for column in table.options.values():
        column[:] = rng.integers(1, 9, 4)
    sampler = TritonSampler(table, vocabulary, device)
    guided = np.flatnonzero(rng.random(count) < 0.5)
    entries = np.flatnonzero(np.arange(count) // MAX_SAMPLES != 1)[::3]  # none in the second part
    drafts = DraftBatch(entries, entries + 1, entries + 2)
    batch = SampleBatch(
        inputs=rng.permutation(count + len(guided)),
        guided=guided,
        images=rng.integers(0, 4, count),
        tokens=np.arange(count),
        grid_positions=rng.integers(0, 400, count),
        flags=SamplingFlags(all_greedy=False),
        drafts={RejectionSampling: drafts},
        logprobs=False,
        given=np.arange(0, count, 5),
    )
    step = HostStep({}, (NO_INTS, np.zeros(1, dtype=np.int64), NO_INTS), 0, None, batch)
    sent = BatchBuilder(table, sampler, device).send(step, capacity=2048)
    assert [len(part) for part in sent.parts] == [MAX_SAMPLES, MAX_SAMPLES, 70]
    assert ["attempts" in part.tensors for part in sent.parts] == [True, False, True]
    for part in sent.parts:
        assert part.tensors["rows"].tolist() == part.inputs.tolist()
        for name, column in sampler.columns(part).items():
            own = part.tensors[name]
            assert own.tolist() == column.tolist(), name
            assert own.data_ptr() % 16 == 0, name


@pytest.mark.parametrize(
    ("inputs", "lanes", "counts"),
    [(90, 3, [30, 30, 30]), (11, 4, [2, 3, 3, 3]), (3, 40, [1, 1, 1]), (5000, 2, [250, 250])],
)
def test_a_rehearsal_is_as_wide_as_a_step_can_be(
    inputs: int, lanes: int, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MAX_SAMPLES", 20)
    drawn, verified = [], []
    sample, verify = SamplingBatch.sample, RejectionSampling.verify

    def record(self: SamplingBatch, logits: torch.Tensor) -> torch.Tensor:
        drawn.append((tuple(logits.shape), self.flags))
        return sample(self, logits)

    def record_drafts(self: RejectionSampling, drafts: Any) -> Any:
        verified.append(drafts.attempts.copy())
        return verify(self, drafts)

    monkeypatch.setattr(SamplingBatch, "sample", record)
    monkeypatch.setattr(RejectionSampling, "verify", record_drafts)
    decoder = ImageDecoder(
        max_images=4,
        max_tokens=250,
        block_size=16,
        vocabulary=Vocabulary(32, CODES),
        device=torch.device("cpu"),
    )
    model = Recorder()
    decoder.rehearse(model, inputs, lanes)
    assert model.batch is not None
    step = model.batch.attention
    assert (step.lane_starts[1:] - step.lane_starts[:-1]).tolist() == counts
    assert step.last_positions.tolist() == [249] * len(counts)
    assert model.batch.num_inputs == sum(counts) == len(step.slot_mapping)
    assert len(set(step.positions[: counts[0]].tolist())) == counts[0]
    assert not step.slot_mapping.any()  # the null block of the KV cache

    # Guided, so that two rows of logits become one; then nothing is spared.
    count = min(20, sum(counts) // 2)
    assert model.rows == 2 * count
    [(shape, flags)] = drawn
    assert shape == (count, CODES)
    assert flags.truncated
    assert flags.top == 0
    assert flags.min_p
    assert len(verified[0]) == min(count, 4)
    assert verified[0].all()
    assert decoder.table.scores is not None
