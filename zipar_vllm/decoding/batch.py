"""Lay a step out: flat model inputs, attention groups and what is sampled.

All of it is worked out on the host, from the images' steps and what the table knows of them, and
brought to the device in one copy (:mod:`.header`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zipar_vllm.attention.interface import AttentionInputs, AttentionKernel
from zipar_vllm.core.visibility import UNWRITTEN

from .header import Field, StepHeader, join
from .host_step import HostStep, SentStep
from .layout import StepLayout
from .sampler import StepSampler
from .samples import SampleBatch
from .table import ImageState, StateTable


@dataclass(frozen=True, slots=True)
class StepBatch:
    """A step, ready to run.

    Attributes:
        input_ids: int64 ``[inputs]`` on the device.
        positions: int64 ``[inputs]`` on the device, as the model counts them.
        attention: Who asks for what, for the attention kernel.
        parts: What is sampled, as much as is drawn at once in each.
        embedded: Embeddings that are fed in place of ids, each with the first input they are of.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    attention: AttentionInputs
    parts: Sequence[SampleBatch]
    embedded: Sequence[tuple[int, torch.Tensor]] = ()

    @property
    def num_inputs(self) -> int:
        return self.input_ids.shape[0]


FIELDS = {
    "sources": Field(np.int64),
    "positions": Field(np.int64),
    "model_positions": Field(np.int64),
    "slots": Field(np.int64, padding=-1),
    "marks": Field(np.int64, padding=-1),
    "forgotten": Field(np.int64),
    "rows": Field(np.int64),
    "limits": Field(np.int32),
}
"""What is brought to the device: of each input the place of its id among the table's tokens, its
position, the model's own one, the slot it is written to, which of the table's orders it sets, and
the highest order it sees; which orders become unwritten first; which inputs are sampled from.
"""


class BatchBuilder:
    """Builds steps over a state table, and marks what they write.

    Args:
        table: The running images.
        sampler: Its fields are brought to the device with the rest.
        device: The model's device.
    """

    def __init__(self, table: StateTable, sampler: StepSampler, device: torch.device) -> None:
        self._table = table
        self._sampler = sampler
        self._tokens = table.tokens.view(-1)
        fields = {**FIELDS, **sampler.fields}
        if not table.has_model_positions:
            del fields["model_positions"]
        self._header = StepHeader(fields, device)

    def lay_out(
        self,
        decoding: Sequence[ImageState],
        prefilling: Sequence[tuple[ImageState, int]],
        kernel: AttentionKernel,
    ) -> HostStep:
        """Lay out a step.

        Args:
            decoding: Images past their prompt.
            prefilling: Images in their prompt, with the number of prompt tokens to compute.
            kernel: Divides its attention.
        """
        layout = StepLayout()
        for image in decoding:
            layout.add_decode(image)
        num_decoding = len(layout.lanes)
        for image, count in prefilling:
            layout.add_prefill(image, count)
        lanes = (
            np.array(layout.lanes),
            np.array([*accumulate(layout.counts, initial=0)]),
            np.array([own[-1] for own in layout.positions]),
        )
        return HostStep(
            arrays=self._arrays(layout),
            lanes=lanes,
            num_decoding=num_decoding,
            tiling=kernel.tile(*lanes),
            samples=layout.samples(),
            embedded=layout.embedded,
        )

    def _arrays(self, layout: StepLayout) -> dict[str, Sequence[NDArray[Any]]]:
        arrays: dict[str, Sequence[NDArray[Any]]] = {
            "sources": layout.sources,
            "positions": layout.positions,
            "slots": layout.slots,
            "limits": layout.limits,
        }
        if layout.model_positions:
            arrays["model_positions"] = layout.model_positions
        slots = self._table.orders.shape[1]
        if layout.forgotten:
            arrays["forgotten"] = [lane * slots + own for lane, own in layout.forgotten]
        if layout.unordered:
            inputs = join(layout.unordered)
            marks = np.full(layout.size, FIELDS["marks"].padding)
            lanes = np.repeat(layout.lanes, layout.counts)
            marks[inputs] = lanes[inputs] * slots + join(layout.positions)[inputs]
            arrays["marks"] = [marks]
        return arrays

    def send(self, step: HostStep, capacity: int | None = None) -> SentStep:
        """Bring a step to the device, in one copy, and forget the orders that it says.

        Args:
            step: As it was laid out.
            capacity: Of a captured step: then all its tensors are as long, and the same each time.
        """
        arrays, parts = dict(step.arrays), step.samples.parts()
        columns = [{"rows": part.inputs, **self._sampler.columns(part)} for part in parts]
        for own in columns:
            for name, column in own.items():
                arrays[name] = [*arrays.get(name, ()), column]
        table = step.tiling.table if step.tiling else None
        tensors = self._header.send(arrays, table, capacity)
        if "forgotten" in arrays:
            # Filled, not assigned: CUDA waits for the number's copy where one is assigned.
            forgotten = tensors["forgotten"][: sum(map(len, arrays["forgotten"]))]
            self._table.flat_orders.index_fill_(0, forgotten, UNWRITTEN)
        step.samples.tensors.update(tensors)
        if len(parts) > 1:
            starts = Counter[str]()
            for part, own in zip(parts, columns, strict=True):
                for name, column in own.items():
                    part.tensors[name] = tensors[name].narrow(0, starts[name], len(column))
                    starts[name] += len(column)
        return SentStep(step, tensors, parts, self._attention(step, tensors))

    def _attention(self, step: HostStep, tensors: Mapping[str, torch.Tensor]) -> AttentionInputs:
        table = self._table
        return AttentionInputs(
            positions=tensors["positions"],
            limits=tensors["limits"],
            slot_mapping=tensors["slots"],
            lanes=step.lanes[0],
            lane_starts=step.lanes[1],
            last_positions=step.lanes[2],
            num_decoding=step.num_decoding,
            orders=table.orders,
            block_table=table.block_table,
            block_size=table.block_size,
            tiling=step.tiling,
            tile_table=tensors.get("tail"),
        )

    def feed(self, sent: SentStep) -> StepBatch:
        """Read a step's input ids, and write the orders that the table does not have."""
        tensors, attention = sent.tensors, sent.attention
        if "marks" in tensors:
            self._table.flat_orders[tensors["marks"]] = attention.limits
        return StepBatch(
            input_ids=self._tokens.index_select(0, tensors["sources"]),
            positions=tensors.get("model_positions", attention.positions),
            attention=attention,
            parts=sent.parts,
            embedded=sent.step.embedded,
        )

    def lay_out_widest(self, num_inputs: int, num_lanes: int, kernel: AttentionKernel) -> HostStep:
        """Lay out a step for which nothing needs to be known of any image.

        Its lanes have the longest length and look at all of it; what is sampled is guided, cut,
        verified and scored, as much as is sampled at once.
        """
        table = self._table
        longest = table.tokens.shape[1]
        num_lanes = min(num_lanes, num_inputs, len(table.block_table))
        counts = np.diff(np.arange(num_lanes + 1) * num_inputs // num_lanes).clip(max=longest)
        starts = np.concatenate([[0], np.cumsum(counts)])
        lanes = (np.arange(num_lanes), starts, np.full(num_lanes, longest - 1))
        positions = np.concatenate([np.arange(longest - count, longest) for count in counts])
        zeros = np.zeros_like(positions)
        return HostStep(
            arrays={
                "sources": [zeros],
                "positions": [positions],
                "slots": [zeros],
                "limits": [np.full_like(positions, UNWRITTEN)],
            },
            lanes=lanes,
            num_decoding=num_lanes,
            tiling=kernel.tile(*lanes),
            samples=SampleBatch.widest(len(positions), table.max_images),
        )
