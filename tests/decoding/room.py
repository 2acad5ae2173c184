"""The decoder over a Hugging Face model, scheduled as the engine does it; no vLLM."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from zipar_vllm.attention.interface import AttentionKernel
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.decoding.batch import StepBatch
from zipar_vllm.decoding.decoder import ImageDecoder
from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.decoding.transformers_model import TransformersModel
from zipar_vllm.models.base import Positions
from zipar_vllm.models.registry import load_spec
from zipar_vllm.prepare import PreparedImage

BLOCK_SIZE = 16
NUM_BLOCKS = 600
MAX_IMAGES = 16


@dataclass
class Decoded:
    """An image's tokens so far, and its forward passes."""

    tokens: list[int] = field(default_factory=list)
    steps: int = 0
    scores: list[list[float]] = field(default_factory=list)


@dataclass
class _Running:
    job: ImageJob
    blocks: list[int]
    prompt_left: int


class _Bounded(TransformersModel):
    """A model that fails on steps with more inputs than there may be."""

    def __init__(self, budget: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._budget = budget

    def forward(self, batch: StepBatch) -> torch.Tensor:
        # The last token of a prompt may be fed twice.
        prompts = len(batch.attention.lanes) - batch.attention.num_decoding
        assert batch.num_inputs <= self._budget + prompts
        return super().forward(batch)


class Room:
    """Images on one model; blocks are handed out in random order.

    Args:
        path: Folder of a tiny model.
        budget: Inputs per step; prompts are computed in chunks where they do not fit, and drafts
            are made with what is left.
        kernel: Attention kernel, None for the usual one.
        positions: As :class:`ImageDecoder` has them.
        model: Runs in place of the folder's Llama.
        device: Where the model runs.
    """

    def __init__(
        self,
        path: Path,
        budget: int = 256,
        kernel: AttentionKernel | None = None,
        positions: Positions | None = None,
        model: Any = None,
        device: torch.device | None = None,
    ):
        device = device or torch.device("cpu")
        if model is None:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            model = model.to(device)
        self.vocabulary: Vocabulary = load_spec(path).vocabulary
        self._model = _Bounded(
            budget,
            model,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            kernel=kernel,
        )
        self._decoder = ImageDecoder(
            max_images=MAX_IMAGES,
            max_tokens=1024,
            block_size=BLOCK_SIZE,
            vocabulary=self.vocabulary,
            device=device,
            positions=positions,
        )
        self._random = random.Random(0)
        self._free = list(range(NUM_BLOCKS))
        self._random.shuffle(self._free)
        self._running: dict[str, _Running] = {}
        self._budget = budget
        self._spare = 0  # inputs that the step has room for
        self.results: dict[str, Decoded] = {}
        self.num_sampled = 0  # by what the decoder says
        self.released: dict[str, list[int]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._running)

    @property
    def running(self) -> set[str]:
        return set(self._running)

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def add(self, name: str, image: PreparedImage, logprobs: bool = False) -> None:
        prompts = image.prompts
        lanes = tuple(len(ids) for ids in (prompts.conditional, prompts.unconditional) if ids)
        job = ImageJob(image.grid, image.params, lanes, logprobs, image.picture)
        blocks = [self._free.pop() for _ in range(job.num_blocks(BLOCK_SIZE))]
        prompt = [*prompts.conditional, *prompts.unconditional]
        self._decoder.add(name, job, prompt, blocks)
        self._running[name] = _Running(job, blocks, len(prompt))
        self.results[name] = Decoded()
        self.released[name] = []

    def capture(self, capacities: Sequence[int]) -> None:
        """Have steps captured from now on."""
        self._decoder.capture(self._model, capacities)

    def abort(self, name: str) -> None:
        self._remove(name)
        del self.results[name]

    def step(self) -> None:
        scheduled = self._schedule()
        names = list(scheduled)
        result = self._decoder.step(scheduled, self._model, drafts=self._drafts(scheduled))
        self.num_sampled += result.num_sampled
        for name in names:
            self.results[name].steps += self._running[name].prompt_left == 0
        for release in result.releases:
            decoded = self.results[names[release.request]]
            row = self._decoder.table.tokens[release.index, release.start : release.stop]
            decoded.tokens += row.tolist()
            if release.logprobs:
                scores = self._decoder.table.scores
                assert scores is not None
                decoded.scores += scores[release.index, release.start : release.stop].tolist()
            self.released[names[release.request]].append(len(decoded.tokens))
        for name in names:
            if len(self.results[name].tokens) == self._running[name].job.grid.num_positions:
                self._remove(name)

    def run(self, limit: int = 2000) -> None:
        """Step until nothing is left; fails rather than hang."""
        for _ in range(limit):
            if not self._running:
                return
            self.step()
        raise AssertionError(f"still running after {limit} steps")

    def generate(self, image: PreparedImage, logprobs: bool = False) -> Decoded:
        """One image, alone."""
        self.add("alone", image, logprobs)
        self.run()
        return self.results.pop("alone")

    def _schedule(self) -> Mapping[str, int]:
        """Every image past its prompt, and prompt tokens within what is left of the budget."""
        left = self._budget - sum(
            image.job.max_inputs for image in self._running.values() if not image.prompt_left
        )
        scheduled = {}
        for name, image in self._running.items():
            count = min(image.prompt_left, left)
            if image.prompt_left == 0 or count > 0:
                scheduled[name] = max(count, 1)
            image.prompt_left -= count
            left -= count
        self._spare = left
        return scheduled

    def _drafts(self, scheduled: Mapping[str, int]) -> dict[str, int]:
        """As many as images want, or by chance under "auto", and as the budget allows."""
        drafts = {}
        for name in scheduled:
            job = self._running[name].job
            asked = job.params.drafts
            wanted = self._random.choice([0, 0, 1, 3, 64]) if asked == "auto" else asked
            drafts[name] = max(0, min(wanted, self._spare // max(job.max_inputs, 1)))
            self._spare -= drafts[name] * job.max_inputs
        return drafts

    def _remove(self, name: str) -> None:
        self._free += self._running.pop(name).blocks
        self._decoder.remove(name)
