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
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.decoding import decoder, triton_sampling
from zipar_vllm.decoding.batch import StepBatch
from zipar_vllm.decoding.decoder import ImageDecoder
from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.decoding.triton_sampler import TritonSampler
from zipar_vllm.prepare import ADAPTIVE, PreparedImage

DEVICE = torch.device("meta")


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
        vocabulary = Vocabulary(32, 100, row_terminator=3 if terminated else None)
        self._decoder = ImageDecoder(
            max_images=4, max_tokens=256, block_size=16, vocabulary=vocabulary, device=DEVICE
        )
        self._names: list[str] = []

    def _launch(self, *args: Any) -> None:
        self.traffic.launches += 1

    def add(self, image: PreparedImage) -> None:
        prompts, name = image.prompts, str(len(self._names))
        lanes = tuple(len(ids) for ids in (prompts.conditional, prompts.unconditional) if ids)
        job = ImageJob(image.grid, image.params, lanes)
        blocks = list(range(job.num_blocks(16)))
        self._decoder.add(name, job, [*prompts.conditional, *prompts.unconditional], blocks)
        self._decoder.step({name: sum(lanes)}, Model())
        self._names.append(name)

    def steps(self, number: int) -> list[tuple[int, int, int, int]]:
        """Copies in, copies out, waits and launches of each step."""
        found = []
        for _ in range(number):
            self.traffic.reset()
            with self.traffic:
                self._decoder.step(dict.fromkeys(self._names, 1), Model())
            own = self.traffic
            found.append((own.copies_in, own.copies_out, own.waits, own.launches))
        return found


@pytest.mark.parametrize("terminated", [True, False], ids=["terminated", "plain"])
def test_a_step_of_fixed_windows(monkeypatch: pytest.MonkeyPatch, terminated: bool) -> None:
    """One copy in; ids read, logits chosen and widened, tokens drawn. All images together."""
    images = Decoder(monkeypatch, terminated)
    images.add(make_image(terminated, window=4, unconditional=NEGATIVE, guidance_scale=2.0))
    images.add(make_image(terminated, window=1, temperature=1.0, top_k=20, top_p=0.9))
    images.add(make_image(terminated))
    assert set(images.steps(14)) == {(1, 0, 0, 4)}


@pytest.mark.parametrize("terminated", [True, False], ids=["terminated", "plain"])
def test_an_adaptive_window_adds(monkeypatch: pytest.MonkeyPatch, terminated: bool) -> None:
    """The orders that a step writes; with a draft its old and new distribution, and a wait for it.

    These steps are more than the bound on fixed windows, and held to what they are.
    """
    images = Decoder(monkeypatch, terminated)
    images.add(make_image(terminated, window=2, policy=ADAPTIVE, temperature=1.0))

    def verdicts(tensor: torch.Tensor) -> list[bool]:
        images.traffic.copies_out += 1
        images.traffic.waits += 1
        return [False] * len(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", verdicts)
    plain, drafted, *verified = images.steps(6)
    assert plain == (1, 0, 0, 5)  # no row may start yet
    assert drafted[:3] == (4, 0, 0)
    for copies_in, copies_out, waits, launches in verified:
        assert (copies_in, copies_out, waits) == (6, 1, 1)
        assert launches <= 160
