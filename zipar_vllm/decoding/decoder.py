"""Run steps: lay one out, forward it, sample it, and say which rows it completed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from zipar_vllm.attention.interface import AttentionKernel
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.models.base import Positions

from .batch import BatchBuilder, StepBatch
from .graphs import Captured, StepGraphs
from .host_step import HostStep, SentStep
from .job import ImageJob
from .policy import DraftCount
from .samples import SampleBatch
from .select import select_sampler
from .table import ImageState, StateTable
from .timing import StepTimes

if TYPE_CHECKING:
    from .triton_sampler import TritonSampler


class StepModel(Protocol):
    """A causal model whose attention is one of the project's kernels.

    Attributes:
        kernel: That one.
    """

    @property
    def kernel(self) -> AttentionKernel: ...

    def forward(self, batch: StepBatch) -> torch.Tensor:
        """Hidden states of a step's inputs, ``[inputs, hidden]``; writes their keys and values."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of some hidden states, ``[n, hidden]`` to ``[n, columns]``."""
        ...


@dataclass(frozen=True, slots=True)
class Release:
    """Rows of an image that were completed: a range of its row of tokens.

    Attributes:
        request: Place of the image among those of the step.
        index: Its index in the state table.
        start, stop: The range.
        logprobs: Whether their log-probabilities are wanted.
    """

    request: int
    index: int
    start: int
    stop: int
    logprobs: bool


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came out of a step, or of several.

    Attributes:
        releases: Completed rows; most steps of most images complete none.
        num_sampled: Tokens sampled, but for drafts that were not accepted.
        num_active_rows: Rows that the next step samples a token of.
        counts: How far images that look ahead have come, by their places among those of the step.
    """

    releases: list[Release]
    num_sampled: int
    num_active_rows: int
    counts: Mapping[int, DraftCount]


class ImageDecoder:
    """Decodes images step by step.

    Args:
        max_images: How many may run at the same time.
        max_tokens: Longest row of tokens: all prompts of an image, then its picture.
        block_size: KV slots per block.
        vocabulary: The numberings of the model's image tokens.
        device: The model's device.
        positions: The model's own positions, where they differ from places in the lane.

    Attributes:
        table: The running images.
        times: Where the steps' time went.
        num_inputs: Inputs of the last forward pass.
    """

    def __init__(
        self,
        *,
        max_images: int,
        max_tokens: int,
        block_size: int,
        vocabulary: Vocabulary,
        device: torch.device,
        positions: Positions | None = None,
    ) -> None:
        self.times = StepTimes()
        self.num_inputs = 0
        self.table = StateTable(max_images, max_tokens, block_size, vocabulary, device, positions)
        self._device = device
        self._vocabulary = vocabulary
        self._sampler = select_sampler(self.table, vocabulary, device)
        self._batches = BatchBuilder(self.table, self._sampler, device)
        self._graphs = StepGraphs()

    def add(
        self,
        request_id: str,
        job: ImageJob,
        prompt: list[int],
        blocks: list[int],
        embeddings: torch.Tensor | None = None,
    ) -> None:
        """Take an image in.

        Args:
            request_id: Its name from now on.
            job: What to decode.
            prompt: Prompts of all lanes, one after the other.
            blocks: KV blocks of all lanes, ``job.num_blocks``, one lane after the other.
            embeddings: What is fed in place of the prompts' ids, ``[tokens, width]``, if anything.
        """
        self.table.add(request_id, job, prompt, blocks, embeddings)

    def remove(self, request_id: str) -> None:
        """Forget an image, finished or not; unknown ids are ignored."""
        self.table.remove(request_id)

    @torch.inference_mode()
    def step(
        self,
        scheduled: Mapping[str, int],
        model: StepModel,
        passes: int = 1,
        drafts: Mapping[str, int] | None = None,
    ) -> StepResult:
        """Take a step of some images, or several steps of images past their prompts.

        Args:
            scheduled: The images of the step; of those in their prompt, how many of its tokens to
                compute.
            model: Runs it.
            passes: Steps to take; 1 if any of the images is in its prompt.
            drafts: Of images that can look ahead, how many plain steps; 0 where nothing is said.
        """
        images = [self.table[request_id] for request_id in scheduled]
        drafts = drafts or {}
        for request_id, image in zip(scheduled, images, strict=True):
            if image.drafting is not None:
                image.drafting.drafts = drafts.get(request_id, 0)
        ahead = self._steps_ahead(images, passes)
        num_sampled = 0
        self.times.start()
        for _ in range(0, passes, ahead):
            counts = scheduled.values()
            steps = deque(self._lay_out(images, counts, model.kernel) for _ in range(ahead))
            while steps:  # a step's memory is free when it is taken, not cold later
                step = steps.popleft()
                if step is not None:
                    num_sampled += self._take(*step, model)
        return self._result(images, num_sampled)

    @torch.inference_mode()
    def rehearse(self, model: StepModel, num_inputs: int, num_lanes: int) -> None:
        """Run a step that needs as much memory as any of its width, before there are images.

        Args:
            model: Runs it; keys and values are written to KV slot 0.
            num_inputs: Inputs of the step, fewer where the lanes do not hold as many.
            num_lanes: Lanes to spread them over, each of the longest length.
        """
        self.table.allocate_scores()
        self.table.tokens.fill_(self._vocabulary.first_id)  # what drafts are compared with
        widest = self._batches.lay_out_widest(num_inputs, num_lanes, model.kernel)
        self._run(self._batches.send(widest), model)

    def _steps_ahead(self, images: list[ImageState], passes: int) -> int:
        """Steps that are laid out before the first of them is taken.

        On a CPU that takes half the time: a forward pass drives what it needs out of the caches.
        On another device, and where steps are captured, one takes the place of the one before.
        """
        is_kept = self._device.type == "cpu" and not len(self._graphs)
        return passes if is_kept and all(image.is_foreseen for image in images) else 1

    def _lay_out(
        self, images: list[ImageState], counts: Iterable[int], kernel: AttentionKernel
    ) -> tuple[SentStep, Captured | None, list[ImageState]] | None:
        """Lay out the next step, if any image has one, and bring it to the device.

        Returns:
            The step, the captured one that it fits if there is one, and the images that wait for
            verdicts: the others are past it already.
        """
        decoding: list[ImageState] = []
        prefilling: list[tuple[ImageState, int]] = []
        for image, count in zip(images, counts, strict=True):
            if not image.is_prefilled:
                prefilling.append((image, count))
            # Scheduling ahead, vLLM asks once more before it hears that an image is complete.
            elif not image.progress.finished:
                decoding.append(image)
        if not decoding and not prefilling:
            return None
        step = self._batches.lay_out(decoding, prefilling, kernel)
        graph = self._graphs.find(step)
        sent = self._batches.send(step, graph.capacity if graph else None)
        waiting = []
        for image in decoding:
            if image.is_foreseen:
                image.progress.advance(())
            else:
                waiting.append(image)
        return sent, graph, waiting

    def _take(
        self, sent: SentStep, graph: Captured | None, waiting: list[ImageState], model: StepModel
    ) -> int:
        """Take a step; the number of tokens it sampled."""
        step = sent.step
        self.num_inputs = step.num_inputs
        accepted = self._replay(graph, step.samples) if graph else self._run(sent, model)
        rejected = sum(_advance(image, accepted) for image in waiting)
        self.times.end("sample")
        self.times.count_step()
        return len(step.samples) - rejected

    def _run(self, sent: SentStep, model: StepModel) -> Mapping[int, Sequence[bool]]:
        """Run a step; by table index, the verdicts on the images' drafts."""
        batch = self._batches.feed(sent)
        self.times.end("prepare")
        hidden = model.forward(batch)
        if not len(sent.step.samples):  # the prompts of these images go on in the next step
            self.times.end("forward")
            return {}
        accepted: dict[int, list[bool]] = {}
        for part in batch.parts:
            for index, verdicts in self._sample(model, hidden, part).items():
                accepted.setdefault(index, []).extend(verdicts)
        return {**accepted, **self._sampler.verdicts(sent.step.samples)}

    def _sample(
        self, model: StepModel, hidden: torch.Tensor, part: SampleBatch
    ) -> Mapping[int, Sequence[bool]]:
        """Sample as much as is drawn at once; its logits are gone before there are others."""
        logits = self._logits(model, hidden, part)
        self.times.end("forward")
        accepted = self._sampler.sample(logits, part)
        self.times.end("sample")
        return accepted

    def _replay(self, graph: Captured, samples: SampleBatch) -> Mapping[int, Sequence[bool]]:
        """The same by a captured step."""
        self.times.end("prepare")
        graph.replay()
        self.times.end("forward")
        return cast("TritonSampler", self._sampler).verdicts(samples)

    @torch.inference_mode()
    def capture(self, model: StepModel, capacities: Sequence[int], pool: Any = None) -> None:
        """Capture steps as CUDA graphs, one for every shape, before there are images.

        A step that fits none, has log-probabilities, embeddings or drafts that are verified by the
        host is run operation by operation.

        Args:
            model: Runs them; what its launches depend on beside tensors may not change.
            capacities: Inputs that there is to be room for, some of ``BUCKETS``.
            pool: CUDA's memory pool for what a step makes on its way: all may share it, as one is
                run at a time, the largest first.
        """
        self._graphs = StepGraphs()
        for capacity in sorted(capacities, reverse=True):
            for tiling in model.kernel.shapes(capacity, self.table.orders.shape[1]):
                sent = self._batches.send(HostStep.blank(tiling), capacity)
                self._graphs.capture(tiling, capacity, partial(self._draw, model, sent), pool)

    def _draw(self, model: StepModel, sent: SentStep) -> None:
        """All launches of a step."""
        batch = self._batches.feed(sent)
        [part] = batch.parts
        logits = self._logits(model, model.forward(batch), part)
        cast("TritonSampler", self._sampler).draw(logits, part)

    def _logits(self, model: StepModel, hidden: torch.Tensor, part: SampleBatch) -> torch.Tensor:
        """Logits of what is sampled from: ``[inputs of the samples, num_codes]``."""
        rows = hidden.index_select(0, part.tensors["rows"])
        return self._vocabulary.select(model.logits(rows))

    def _result(self, images: list[ImageState], num_sampled: int) -> StepResult:
        releases, active_rows, counts = [], 0, {}
        for request, image in enumerate(images):
            if not image.is_prefilled:
                active_rows += 1
                continue
            start, stride = image.prompt_length, image.job.grid.stride
            before, after = image.released, image.progress.complete_rows
            if after > before:
                rows = (start + before * stride, start + after * stride)
                releases.append(Release(request, image.index, *rows, image.job.logprobs))
                image.released = after
            drafting = image.drafting
            if drafting is not None:
                counts[request] = drafting.count
            if not image.progress.finished:
                active_rows += (
                    image.progress.step().num_sampled if drafting is None else drafting.active_rows
                )
        return StepResult(releases, num_sampled, active_rows, counts)


def _advance(image: ImageState, accepted: Mapping[int, Sequence[bool]]) -> int:
    """Count an image's step; how many of its tokens are not final."""
    verdicts, drafting = accepted.get(image.index, ()), image.drafting
    if drafting is None:
        image.progress.advance(verdicts)
        return 0
    before = drafting.count.rejected
    drafting.advance(verdicts)
    return drafting.count.rejected - before
