"""What a step asks of a GPU outside the model: copies, launches, waits.

The device is torch's "meta", whose tensors have no contents: whoever reads one on the host fails.
The Triton sampler's kernel counts as a launch and is not run; views are none.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cases import NEGATIVE, make_image
from tests.traffic import Traffic
from zipar_vllm.attention.interface import NotTiled
from zipar_vllm.core.transfer import to_host
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.decoding import decoder, samples, triton_sampler, triton_sampling
from zipar_vllm.decoding.batch import StepBatch
from zipar_vllm.decoding.decoder import ImageDecoder
from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.decoding.triton_sampler import TritonSampler
from zipar_vllm.prepare import ADAPTIVE, PreparedImage

DEVICE = torch.device("meta")
GUIDED: dict[str, Any] = {"unconditional": NEGATIVE, "guidance_scale": 2.0}


class Kernel(NotTiled):
    """What a step's attention launches is the model's."""

    def prepare(self, step: Any) -> None:
        """Nothing."""

    def run(self, *args: Any) -> None:
        """Nothing."""


class Model:
    """Hidden states and logits without contents, that launch nothing."""

    kernel = Kernel()

    def forward(self, batch: StepBatch) -> torch.Tensor:
        return torch.empty(batch.num_inputs, 8, device=DEVICE)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.empty(len(hidden), 160, device=DEVICE, dtype=torch.bfloat16)


class Decoder:
    """A decoder that samples by the Triton kernel, and what its steps ask for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, terminated: bool) -> None:
        self.traffic = Traffic()
        monkeypatch.setattr(decoder, "select_sampler", TritonSampler)
        monkeypatch.setattr(triton_sampling, "sample", self._launch)
        monkeypatch.setattr(triton_sampler, "to_host", self._wait)
        vocabulary = Vocabulary(32, 100, row_terminator=3 if terminated else None)
        self._decoder = ImageDecoder(
            max_images=4, max_tokens=256, block_size=16, vocabulary=vocabulary, device=DEVICE
        )
        self._names: list[str] = []
        self._drafts: dict[str, int] = {}
        self.drawn: list[tuple[int, bool]] = []

    def _launch(self, logits: torch.Tensor, columns: Any, *others: Any) -> None:
        self.traffic.launches += 1
        self.drawn.append((len(columns.places), others[-1] is not None))

    def _wait(self, verdicts: torch.Tensor) -> torch.Tensor:
        """As the real one: a copy out and an event; no draft is accepted."""
        self.traffic.waits += 1
        return to_host(verdicts).zero_()

    def add(self, image: PreparedImage, embedded: bool = False) -> tuple[int, int, int]:
        """Copies in, waits and launches of its arrival."""
        prompts, name = image.prompts, str(len(self._names))
        lanes = tuple(len(ids) for ids in (prompts.conditional, prompts.unconditional) if ids)
        job = ImageJob(image.grid, image.params, lanes)
        blocks = list(range(job.num_blocks(16)))
        embeddings = torch.ones(sum(lanes), 8) if embedded else None
        self.traffic.reset()
        with self.traffic:
            self._decoder.add(
                name, job, [*prompts.conditional, *prompts.unconditional], blocks, embeddings
            )
        arrival = (self.traffic.copies_in, self.traffic.waits, self.traffic.launches)
        self._decoder.step({name: sum(lanes)}, Model())
        self._names.append(name)
        if image.params.drafts:
            self._drafts[name] = 2
        return arrival

    def steps(self, number: int) -> list[tuple[int, int, int, int]]:
        """Copies in, copies out, waits and launches of each step."""
        found = []
        for _ in range(number):
            self.traffic.reset()
            with self.traffic:
                self._decoder.step(dict.fromkeys(self._names, 1), Model(), drafts=self._drafts)
            own = self.traffic
            found.append((own.copies_in, own.copies_out, own.waits, own.launches))
        return found


TERMINATED = pytest.mark.parametrize("terminated", [True, False], ids=["terminated", "plain"])


@TERMINATED
def test_a_step_of_fixed_windows(monkeypatch: pytest.MonkeyPatch, terminated: bool) -> None:
    """One copy in; ids read, logits chosen, tokens drawn. All images together."""
    images = Decoder(monkeypatch, terminated)
    images.add(make_image(terminated, window=4, **GUIDED))
    images.add(make_image(terminated, window=1, temperature=1.0, top_k=20, top_p=0.9))
    images.add(make_image(terminated))
    assert set(images.steps(14)) == {(1, 0, 0, 3)}


@TERMINATED
def test_a_step_of_adaptive_windows(monkeypatch: pytest.MonkeyPatch, terminated: bool) -> None:
    """The orders that it writes too; with a draft what that is compared with, and the verdict."""
    images = Decoder(monkeypatch, terminated)
    images.add(make_image(terminated, window=2, policy=ADAPTIVE, temperature=1.0))
    images.add(make_image(terminated, window=2, policy=ADAPTIVE, **GUIDED))
    plain, *drafted = images.steps(6)
    assert plain == (1, 0, 0, 4)  # no row may start yet
    assert set(drafted) == {(1, 1, 1, 5)}


@TERMINATED
def test_a_step_of_drafts(monkeypatch: pytest.MonkeyPatch, terminated: bool) -> None:
    """One that looks ahead has its drafts compared; an adaptive image beside it costs no more."""
    images = Decoder(monkeypatch, terminated)
    images.add(make_image(terminated, window=2, drafts=2, **GUIDED))
    images.add(make_image(terminated, window=2, drafts=2, temperature=1.0))
    assert set(images.steps(6)) == {(1, 1, 1, 4)}
    images.add(make_image(terminated, window=2, policy=ADAPTIVE))
    assert set(images.steps(3)) == {(1, 1, 1, 5)}


@TERMINATED
@pytest.mark.parametrize("drafts", [0, 2])
def test_a_wide_step(monkeypatch: pytest.MonkeyPatch, terminated: bool, drafts: int) -> None:
    """Copied and waited for as little; launched per part: logits chosen, drafts, tokens drawn."""
    monkeypatch.setattr(samples, "MAX_SAMPLES", 3)
    images = Decoder(monkeypatch, terminated)
    for _ in range(2):
        images.add(make_image(terminated, window=1, drafts=drafts, **GUIDED))
    images.add(make_image(terminated, window=1, temperature=1.0))
    images.steps(4)
    for _ in range(6):
        images.drawn.clear()
        [step] = images.steps(1)
        parts, with_drafts = len(images.drawn), sum(has_drafts for _, has_drafts in images.drawn)
        assert [count for count, _ in images.drawn[:-1]] == [3] * (parts - 1)
        assert parts > 2
        assert (with_drafts > 0) == (drafts > 0)
        has_drafts = int(drafts > 0)
        assert step == (1, has_drafts, has_drafts, 1 + 2 * parts + with_drafts)


@TERMINATED
def test_an_arriving_image(monkeypatch: pytest.MonkeyPatch, terminated: bool) -> None:
    """One copy in for tokens, orders and blocks of both lanes; one more for embeddings."""
    images = Decoder(monkeypatch, terminated)
    assert images.add(make_image(terminated, window=4, **GUIDED)) == (1, 0, 3)
    assert images.add(make_image(terminated, policy=ADAPTIVE)) == (1, 0, 3)
    assert images.add(make_image(terminated), embedded=True) == (2, 0, 3)
