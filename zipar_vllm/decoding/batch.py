"""Lay a step out: flat model inputs, attention groups and what is sampled, in host arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zipar_vllm.attention.interface import AttentionInputs
from zipar_vllm.core.visibility import UNWRITTEN

from .policy import IntArray, Verification
from .table import ImageState, StateTable


@dataclass(slots=True)
class _Lanes:
    """Inputs of some lanes, lane after lane.

    Attributes:
        images: Table index of each lane's image.
        lanes: Index of each lane in the lane tables.
        positions: Raster position of each lane's inputs, ascending.
        sources: Where each lane's inputs stand in the image's row of tokens.
        orders: Order of each lane's inputs.
        forgotten: Slots that become unwritten first, as pairs of a lane and its positions.
    """

    images: list[int] = field(default_factory=list)
    lanes: list[int] = field(default_factory=list)
    positions: list[IntArray] = field(default_factory=list)
    sources: list[IntArray] = field(default_factory=list)
    orders: list[NDArray[np.int32]] = field(default_factory=list)
    forgotten: list[tuple[int, IntArray]] = field(default_factory=list)
    size: int = 0

    def add(
        self,
        image: ImageState,
        number: int,
        positions: IntArray,
        sources: IntArray,
        orders: NDArray[np.int32],
    ) -> int:
        """Append a lane's inputs; returns where they start in this group."""
        start = self.size
        self.images.append(image.index)
        self.lanes.append(image.lane(number))
        self.positions.append(positions)
        self.sources.append(sources)
        self.orders.append(orders)
        self.size += len(positions)
        return start


@dataclass(slots=True)
class _Samples:
    """Which inputs' logits are sampled, and for which token; one array per image in each list."""

    conditional: list[IntArray] = field(default_factory=list)
    unconditional: list[IntArray] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    targets: list[IntArray] = field(default_factory=list)
    grid_positions: list[IntArray] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    drafts: dict[type[Verification], tuple[list[IntArray], list[IntArray]]] = field(
        default_factory=dict
    )
    logprobs: bool = False
    size: int = 0


@dataclass(frozen=True, slots=True)
class DraftBatch:
    """Entries of a sample batch that are drafts, and how often each was drawn before."""

    entries: IntArray
    attempts: IntArray


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Tokens to sample in a step; host arrays, one entry per token.

    Attributes:
        conditional: Input whose logits predict the token.
        guided: Entries of this batch that have an unconditional lane.
        unconditional: Their inputs on that lane.
        images: Table index of the image.
        offsets: Where the token stands in its image's row of tokens.
        grid_positions: ``row * columns + column``, which keys the sampling noise.
        drafts: By what decides on them, the entries that are drafts.
        logprobs: Whether the log-probability of any of them is wanted.
    """

    conditional: IntArray
    guided: IntArray
    unconditional: IntArray
    images: IntArray
    offsets: IntArray
    grid_positions: IntArray
    drafts: Mapping[type[Verification], DraftBatch]
    logprobs: bool

    def __len__(self) -> int:
        return len(self.images)

    @property
    def inputs(self) -> IntArray:
        """Inputs whose logits are read: of all entries, then the guided ones' unconditional."""
        return np.concatenate([self.conditional, self.unconditional])


@dataclass(frozen=True, slots=True)
class StepBatch:
    """A step, ready to run.

    Attributes:
        input_ids: int64 ``[inputs]`` on the device.
        positions: int64 ``[inputs]`` on the device, raster positions.
        attention: Who asks for what, for the attention kernel.
        samples: What is sampled.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    attention: AttentionInputs
    samples: SampleBatch

    @property
    def num_inputs(self) -> int:
        return self.input_ids.shape[0]


class BatchBuilder:
    """Builds steps over a state table, and marks what they write.

    Args:
        table: The running images.
        device: The model's device.
    """

    def __init__(self, table: StateTable, device: torch.device) -> None:
        self._table = table
        self._device = device

    def build(
        self, decoding: Sequence[ImageState], prefilling: Sequence[tuple[ImageState, int]]
    ) -> StepBatch:
        """Lay out a step.

        Args:
            decoding: Images past their prompt.
            prefilling: Images in their prompt, with the number of prompt tokens to compute.
        """
        samples = _Samples()
        decode, prefill = _Lanes(), _Lanes()
        for image in decoding:
            _add_decode(image, decode, samples)
        for image, count in prefilling:
            _add_prefill(image, count, prefill, samples, offset=decode.size)
        return self._assemble(decode, prefill, _pack(samples))

    def _assemble(self, decode: _Lanes, prefill: _Lanes, samples: SampleBatch) -> StepBatch:
        table, block_size = self._table, self._table.block_size
        inputs = decode.positions + prefill.positions
        counts = np.array([len(positions) for positions in inputs])
        lane_of_input = np.repeat(decode.lanes + prefill.lanes, counts)
        image_of_input = np.repeat(decode.images + prefill.images, counts)
        lanes, positions = self._to_device(lane_of_input), self._to_device(np.concatenate(inputs))
        sources = self._to_device(np.concatenate(decode.sources + prefill.sources))
        orders = self._to_device(np.concatenate(decode.orders + prefill.orders))
        for lane, forgotten in decode.forgotten:
            table.orders[lane, self._to_device(forgotten)] = UNWRITTEN
        table.orders[lanes, positions] = orders
        blocks = table.block_table[lanes, positions // block_size]
        return StepBatch(
            input_ids=table.tokens[self._to_device(image_of_input), sources],
            positions=positions,
            attention=AttentionInputs(
                positions=positions,
                limits=orders,
                slot_mapping=blocks * block_size + positions % block_size,
                lanes=np.array(decode.lanes + prefill.lanes),
                lane_starts=np.concatenate([[0], np.cumsum(counts)]),
                last_positions=np.array([int(positions[-1]) for positions in inputs]),
                num_decoding=len(decode.lanes),
                orders=table.orders,
                block_table=table.block_table,
                block_size=block_size,
            ),
            samples=samples,
        )

    def _to_device(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def _add_decode(image: ImageState, lanes: _Lanes, samples: _Samples) -> None:
    step = image.progress.step()
    sources = step.sources + image.job.prompt_length
    starts = [
        lanes.add(image, number, step.positions + prompt, sources, step.orders)
        for number, prompt in enumerate(image.job.lane_prompts)
    ]
    if len(step.forget):
        lanes.forgotten += [
            (image.lane(number), step.forget + prompt)
            for number, prompt in enumerate(image.job.lane_prompts)
        ]
    if len(step.drafts):
        assert image.verification is not None
        entries, attempts = samples.drafts.setdefault(image.verification, ([], []))
        entries.append(np.searchsorted(step.sampled, step.drafts) + samples.size)
        attempts.append(step.attempts)
    if len(step.sampled):
        inputs = [step.sampled + start for start in starts]
        _add_samples(image, inputs, step.targets[step.sampled], samples)


def _add_prefill(
    image: ImageState, count: int, lanes: _Lanes, samples: _Samples, offset: int
) -> None:
    """Add the next ``count`` prompt tokens of an image, whichever lanes they belong to.

    With the last of them comes the image's first token: its logits stand at the last prompt
    token of each lane, so one whose prompt ended in an earlier chunk feeds that token once more.
    """
    begin, end = image.prefilled, image.prefilled + count
    last = end == image.job.prompt_length
    first_of_lane = 0
    final_inputs = []
    for number, prompt in enumerate(image.job.lane_prompts):
        low = max(begin - first_of_lane, 0)
        high = min(end - first_of_lane, prompt)
        if last:
            low = min(low, prompt - 1)
        if low < high:
            positions = np.arange(low, high)
            orders = np.zeros(len(positions), dtype=np.int32)
            start = lanes.add(image, number, positions, positions + first_of_lane, orders)
            final_inputs.append(np.array([offset + start + len(positions) - 1]))
        first_of_lane += prompt
    image.prefilled = end
    if last:
        _add_samples(image, final_inputs, np.zeros(1, dtype=np.int64), samples)


def _add_samples(
    image: ImageState, inputs: list[IntArray], targets: IntArray, samples: _Samples
) -> None:
    """``inputs``: for each lane, the inputs whose logits predict ``targets``."""
    grid = image.job.grid
    samples.conditional.append(inputs[0])
    samples.unconditional.append(inputs[1] if len(inputs) > 1 else np.full(len(targets), -1))
    samples.images.append(image.index)
    samples.targets.append(targets)
    samples.grid_positions.append(targets // grid.stride * grid.columns + targets % grid.stride)
    samples.prompts.append(image.job.prompt_length)
    samples.size += len(targets)
    samples.logprobs |= image.job.logprobs


def _pack(samples: _Samples) -> SampleBatch:
    if not samples.images:
        none: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        return SampleBatch(none, none, none, none, none, none, {}, False)
    counts = [len(targets) for targets in samples.targets]
    unconditional = np.concatenate(samples.unconditional)
    guided = np.flatnonzero(unconditional >= 0)
    return SampleBatch(
        conditional=np.concatenate(samples.conditional),
        guided=guided,
        unconditional=unconditional[guided],
        images=np.repeat(samples.images, counts),
        offsets=np.concatenate(samples.targets) + np.repeat(samples.prompts, counts),
        grid_positions=np.concatenate(samples.grid_positions),
        drafts={
            verification: DraftBatch(np.concatenate(entries), np.concatenate(attempts))
            for verification, (entries, attempts) in samples.drafts.items()
        },
        logprobs=samples.logprobs,
    )
