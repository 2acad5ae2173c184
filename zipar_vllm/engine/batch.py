"""Lay a step out: flat model inputs, attention groups and what is sampled, in host arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from zipar_vllm.attention.step import StepInputs
from zipar_vllm.core.frontier import NOT_SAMPLED

from .state import ImageState, StateTable

Ints = NDArray[np.int64]


@dataclass(slots=True)
class _Lanes:
    """Inputs of some lanes, lane after lane.

    Attributes:
        rows: Image row of each lane.
        lanes: Lane row of each lane.
        positions: Raster position of each lane's inputs, ascending.
        sources: Where each lane's inputs stand in the image's token row.
    """

    rows: list[int] = field(default_factory=list)
    lanes: list[int] = field(default_factory=list)
    positions: list[Ints] = field(default_factory=list)
    sources: list[Ints] = field(default_factory=list)
    size: int = 0

    def add(self, image: ImageState, lane: int, positions: Ints, sources: Ints) -> int:
        """Append a lane's inputs; returns where they start in this group."""
        start = self.size
        self.rows.append(image.row)
        self.lanes.append(image.lane(lane))
        self.positions.append(positions)
        self.sources.append(sources)
        self.size += len(positions)
        return start


@dataclass(slots=True)
class _Samples:
    """Which inputs' logits are sampled, and for which token; one array a request in each list."""

    conditional: list[Ints] = field(default_factory=list)
    unconditional: list[Ints] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    targets: list[Ints] = field(default_factory=list)
    grid_positions: list[Ints] = field(default_factory=list)
    token_offsets: list[int] = field(default_factory=list)
    openings: list[int] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    size: int = 0


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """What a step samples, as host arrays of one entry a token.

    Attributes:
        conditional: Input whose logits predict the token.
        guided: Places in this batch that have an unconditional lane.
        unconditional: Their inputs on that lane.
        rows: Image row.
        token_slots: Place of the token in its image's token row.
        grid_positions: ``row * columns + column``, which keys the sampling noise.
        openings: Places in this batch that open a row under an adaptive window.
        attempts: How often each of those was predicted before.
    """

    conditional: Ints
    guided: Ints
    unconditional: Ints
    rows: Ints
    token_slots: Ints
    grid_positions: Ints
    openings: Ints
    attempts: Ints

    def __len__(self) -> int:
        return len(self.rows)


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
    attention: StepInputs
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
        self,
        decoding: Sequence[tuple[ImageState, int]],
        prefilling: Sequence[tuple[ImageState, int]],
    ) -> StepBatch:
        """Lay out a step.

        Args:
            decoding: Images past their prompt, with the plan step to take.
            prefilling: Images in their prompt, with the number of prompt tokens to compute.
        """
        samples = _Samples()
        decode, prefill = _Lanes(), _Lanes()
        for image, step in decoding:
            _add_decode(image, step, decode, samples)
        for image, count in prefilling:
            _add_prefill(image, count, prefill, samples, offset=decode.size)
        return self._assemble(decode, prefill, _pack(samples))

    def _assemble(self, decode: _Lanes, prefill: _Lanes, samples: SampleBatch) -> StepBatch:
        table, block_size = self._table, self._table.block_size
        inputs = decode.positions + prefill.positions
        counts = np.array([len(positions) for positions in inputs])
        lane_of_input = np.repeat(decode.lanes + prefill.lanes, counts)
        row_of_input = np.repeat(decode.rows + prefill.rows, counts)
        lanes, positions = self._to_device(lane_of_input), self._to_device(np.concatenate(inputs))
        sources = self._to_device(np.concatenate(decode.sources + prefill.sources))
        table.written[lanes, positions] = True
        blocks = table.block_table[lanes, positions // block_size]
        return StepBatch(
            input_ids=table.tokens[self._to_device(row_of_input), sources],
            positions=positions,
            attention=StepInputs(
                positions=positions,
                slot_mapping=blocks * block_size + positions % block_size,
                lanes=np.array(decode.lanes + prefill.lanes),
                lane_starts=np.concatenate([[0], np.cumsum(counts)]),
                last_positions=np.array([int(positions[-1]) for positions in inputs]),
                num_decoding=len(decode.lanes),
                written=table.written,
                block_table=table.block_table,
                block_size=block_size,
            ),
            samples=samples,
        )

    def _to_device(self, array: Ints) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def _add_decode(image: ImageState, step: int, lanes: _Lanes, samples: _Samples) -> None:
    now = image.step(step)
    inputs = now.plan
    slots = inputs.slots.astype(np.int64)
    sources = inputs.sources.astype(np.int64) + image.job.prompt_length
    starts = [
        lanes.add(image, lane, slots + prompt, sources)
        for lane, prompt in enumerate(image.job.lane_prompts)
    ]
    sampled = np.flatnonzero(inputs.targets != NOT_SAMPLED)
    if len(sampled):
        _add_samples(image, [sampled + start for start in starts], inputs.targets[sampled], samples)
    if now.attempt is not None:
        samples.openings.append(samples.size - 1)  # the image's last input
        samples.attempts.append(now.attempt)


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
    for lane, prompt in enumerate(image.job.lane_prompts):
        low = max(begin - first_of_lane, 0)
        high = min(end - first_of_lane, prompt)
        if last:
            low = min(low, prompt - 1)
        if low < high:
            positions = np.arange(low, high)
            start = lanes.add(image, lane, positions, positions + first_of_lane)
            final_inputs.append(np.array([offset + start + len(positions) - 1]))
        first_of_lane += prompt
    image.prefilled = end
    if last:
        _add_samples(image, final_inputs, np.zeros(1, dtype=np.int64), samples)


def _add_samples(
    image: ImageState, inputs: list[Ints], targets: NDArray[np.integer], samples: _Samples
) -> None:
    """``inputs``: for each lane, the inputs whose logits predict ``targets``."""
    grid = image.job.plan.grid
    slots = targets.astype(np.int64)
    samples.conditional.append(inputs[0])
    samples.unconditional.append(inputs[1] if len(inputs) > 1 else np.full(len(slots), -1))
    samples.rows.append(image.row)
    samples.targets.append(slots)
    samples.grid_positions.append(slots // grid.stride * grid.columns + slots % grid.stride)
    samples.token_offsets.append(image.job.prompt_length)
    samples.size += len(slots)


def _pack(samples: _Samples) -> SampleBatch:
    if not samples.rows:
        none = np.zeros(0, dtype=np.int64)
        return SampleBatch(none, none, none, none, none, none, none, none)
    counts = [len(t) for t in samples.targets]
    unconditional = np.concatenate(samples.unconditional)
    guided = np.flatnonzero(unconditional >= 0)
    return SampleBatch(
        conditional=np.concatenate(samples.conditional),
        guided=guided,
        unconditional=unconditional[guided],
        rows=np.repeat(samples.rows, counts),
        token_slots=np.concatenate(samples.targets) + np.repeat(samples.token_offsets, counts),
        grid_positions=np.concatenate(samples.grid_positions),
        openings=np.array(samples.openings, dtype=np.int64),
        attempts=np.array(samples.attempts, dtype=np.int64),
    )
