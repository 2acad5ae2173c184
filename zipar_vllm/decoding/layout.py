"""A step in the making, image after image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from zipar_vllm.core.sampling import SamplingFlags

from .header import join
from .policy import IntArray, Verification
from .samples import DraftBatch, SampleBatch
from .table import ImageState


@dataclass(slots=True)
class StepLayout:
    """A step in the making: inputs lane after lane, samples image after image.

    Attributes:
        size: Inputs so far.
        lanes: Index of each lane in the lane tables.
        counts: Inputs of each lane.
        positions, slots, sources, limits: Of the inputs, an array per lane.
        model_positions: The same; empty if the model counts as the lane does.
        embedded: Embeddings of inputs that have no ids, with the first input they are of.
        unordered: Inputs whose orders the table does not have yet.
        forgotten: Slots that become unwritten first, as pairs of a lane and its positions.
        conditional, unconditional: Inputs that are sampled, an array per image.
        images, image_counts: Images that sample, and how many tokens.
        tokens, grid_positions: Of the samples, an array per image.
        guided: Entries with an unconditional lane.
        num_samples: Samples so far.
        flags: Of the images that sample.
        drafts: Entries, attempts and previous tokens by verification, an array per image.
        logprobs: Whether any image wants log-probabilities.
        given: Entries whose token is known.
    """

    size: int = 0
    lanes: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    positions: list[IntArray] = field(default_factory=list)
    model_positions: list[IntArray] = field(default_factory=list)
    embedded: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    slots: list[IntArray] = field(default_factory=list)
    sources: list[IntArray] = field(default_factory=list)
    limits: list[NDArray[np.int32]] = field(default_factory=list)
    unordered: list[IntArray] = field(default_factory=list)
    forgotten: list[tuple[int, IntArray]] = field(default_factory=list)
    conditional: list[IntArray] = field(default_factory=list)
    unconditional: list[IntArray] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    image_counts: list[int] = field(default_factory=list)
    tokens: list[IntArray] = field(default_factory=list)
    grid_positions: list[IntArray] = field(default_factory=list)
    guided: list[IntArray] = field(default_factory=list)
    num_samples: int = 0
    flags: list[SamplingFlags] = field(default_factory=list)
    drafts: dict[type[Verification], list[DraftBatch]] = field(default_factory=dict)
    logprobs: bool = False
    given: list[IntArray] = field(default_factory=list)

    def add_decode(self, image: ImageState) -> None:
        """Add the next step of an image past its prompt."""
        step, prompts = image.progress.step(), image.job.lane_prompts
        sources = step.sources + image.picture_start
        starts = [
            self._add_lane(image, number, step.positions + prompt, sources, step.orders)
            for number, prompt in enumerate(prompts)
        ]
        if not image.has_orders:
            self.unordered.append(np.arange(starts[0], self.size))
        if len(step.forget):
            for number, prompt in enumerate(prompts):
                self.forgotten.append((image.lane(number), step.forget + prompt))
        if len(step.drafts):
            assert image.verification is not None
            self.drafts.setdefault(image.verification, []).append(
                DraftBatch(
                    entries=np.searchsorted(step.sampled, step.drafts) + self.num_samples,
                    attempts=step.attempts,
                    previous=step.previous + image.picture_start,
                )
            )
        if len(step.sampled):
            inputs = [step.sampled + start for start in starts]
            self._add_samples(image, inputs, step.targets[step.sampled])

    def add_prefill(self, image: ImageState, count: int) -> None:
        """Add the next ``count`` prompt tokens of an image, whichever lanes they belong to.

        With the last of them comes the image's first token: its logits stand at the last prompt
        token of each lane, so one whose prompt ended in an earlier chunk feeds that token once
        more.
        """
        begin, end = image.prefilled, image.prefilled + count
        last = end == image.prompt_length
        first_of_lane = 0
        final_inputs = []
        for number, prompt in enumerate(image.job.lane_prompts):
            low = max(begin - first_of_lane, 0)
            high = min(end - first_of_lane, prompt)
            if last:
                low = min(low, prompt - 1)
            if low < high:
                positions = np.arange(low, high)
                sources = positions + (image.first_token + first_of_lane)
                limits = np.zeros(high - low, dtype=np.int32)
                start = self._add_lane(image, number, positions, sources, limits)
                if image.embeddings is not None:
                    rows = image.embeddings[first_of_lane + low : first_of_lane + high]
                    self.embedded.append((start, rows))
                final_inputs.append(np.array([self.size - 1]))
            first_of_lane += prompt
        image.prefilled = end
        if last:
            self._add_samples(image, final_inputs, np.zeros(1, dtype=np.int64))

    def _add_lane(
        self,
        image: ImageState,
        number: int,
        positions: IntArray,
        sources: IntArray,
        limits: NDArray[np.int32],
    ) -> int:
        """Append a lane's inputs; returns where they start."""
        start = self.size
        self.lanes.append(image.lane(number))
        self.counts.append(len(positions))
        self.positions.append(positions)
        if image.model_positions is not None:
            self.model_positions.append(image.model_positions[number][positions])
        self.slots.append(image.slots[number][positions])
        self.sources.append(sources)
        self.limits.append(limits)
        self.size += len(positions)
        return start

    def _add_samples(self, image: ImageState, inputs: list[IntArray], targets: IntArray) -> None:
        """``inputs``: for each lane, the inputs whose logits predict ``targets``."""
        count = len(targets)
        self.conditional.append(inputs[0])
        if len(inputs) > 1:
            self.unconditional.append(inputs[1])
            self.guided.append(np.arange(self.num_samples, self.num_samples + count))
        self.images.append(image.index)
        self.image_counts.append(count)
        self.tokens.append(targets + image.picture_start)
        self.grid_positions.append(image.grid_positions[targets])
        if image.job.picture:
            self.given.append(np.arange(self.num_samples, self.num_samples + count))
        self.num_samples += count
        self.flags.append(image.flags)
        self.logprobs |= image.job.logprobs

    def samples(self) -> SampleBatch:
        """What is sampled."""
        return SampleBatch(
            inputs=join(self.conditional + self.unconditional),
            guided=join(self.guided),
            images=np.array(self.images, dtype=np.int64).repeat(self.image_counts),
            tokens=join(self.tokens),
            grid_positions=join(self.grid_positions),
            flags=SamplingFlags.merge(self.flags),
            drafts={
                verification: DraftBatch(
                    entries=join([own.entries for own in drafts]),
                    attempts=join([own.attempts for own in drafts]),
                    previous=join([own.previous for own in drafts]),
                )
                for verification, drafts in self.drafts.items()
            },
            logprobs=self.logprobs,
            given=join(self.given),
        )
