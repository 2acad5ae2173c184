"""What attention needs to know of a step: who asks, what it may see, where keys lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a kernel divides a step's work, worked out on the host.

    Attributes:
        table: int32 ``[length]``, the kernel's own; it needs it on the device.
        rows: Rows of a tile.
        parts: Parts of tiles whose results are merged, at most.
    """

    table: NDArray[np.int32]
    rows: int
    parts: int


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """One step's queries, lane after lane.

    A lane is one sequence of KV slots: an image has one, or two under guidance. The visibility
    rule: a query sees the slots of its lane whose position is at most its own and whose order is
    at most its limit, this step's writes included (:mod:`zipar_vllm.core.visibility`).

    Attributes:
        positions: int64 ``[inputs]`` on the device, raster position of each input; one lane has
            each at most once.
        limits: int32 ``[inputs]`` on the device, the highest order that each query sees.
        slot_mapping: int64 ``[inputs]`` on the device, physical slot each key and value go to.
        lanes: int64 ``[lanes]`` on the host, indices into the tables below.
        lane_starts: int64 ``[lanes + 1]`` on the host, where each lane's inputs begin.
        last_positions: int64 ``[lanes]`` on the host, highest position among a lane's inputs.
        num_decoding: The first lanes, whose inputs are a ready set and not a prompt.
        orders: int32 ``[all lanes, slots]`` on the device, order of the token in each slot,
            ``UNWRITTEN`` where there is none.
        block_table: int64 ``[all lanes, slots / block_size]`` on the device; past a lane's end it
            names any valid block.
        block_size: Slots per block.
        tiling: How the kernel divides the step, if that is worked out already.
        tile_table: Its table on the device.
    """

    positions: torch.Tensor
    limits: torch.Tensor
    slot_mapping: torch.Tensor
    lanes: Ints
    lane_starts: Ints
    last_positions: Ints
    num_decoding: int
    orders: torch.Tensor
    block_table: torch.Tensor
    block_size: int
    tiling: Tiling | None = None
    tile_table: torch.Tensor | None = None


class AttentionKernel(Protocol):
    """An implementation of the visibility rule.

    A KV cache is ``[blocks, kv_heads, block_size, 2 * head_size]``, contiguous, for the Triton
    kernel's wider where that aligns it; how a kernel orders the numbers within a block is its own
    affair.
    """

    def prepare(self, step: AttentionInputs) -> Any:
        """Work out once per step what every layer needs."""
        ...

    def run(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        metadata: Any,
        scale: float,
        output: torch.Tensor,
    ) -> None:
        """Write this step's keys and values, then attend.

        Args:
            query: ``[inputs, heads, head_size]``.
            key, value: ``[inputs, kv_heads, head_size]``.
            cache: The layer's KV cache.
            metadata: What :meth:`prepare` returned for this step.
            scale: Multiplies the scores.
            output: ``[inputs, heads, head_size]``, written in place.
        """
        ...

    def tile(self, lanes: Ints, lane_starts: Ints, last_positions: Ints) -> Tiling | None:
        """Divide a step; arguments as in :class:`AttentionInputs`. None if there is no need to."""
        ...

    def shapes(self, num_inputs: int, max_keys: int) -> Sequence[Tiling]:
        """What launches may be captured for, of steps of so many inputs and keys per lane.

        Returns:
            Shapes without tiles: their tables are all zeros and as long as any. A captured step
            serves those of as many rows, no more parts and no longer table. None if launches
            depend on more than that.
        """
        ...


class NotTiled:
    """What a kernel answers that divides no step beforehand, and cannot be captured."""

    def tile(self, lanes: Ints, lane_starts: Ints, last_positions: Ints) -> Tiling | None:
        """No need to."""
        return None

    def shapes(self, num_inputs: int, max_keys: int) -> Sequence[Tiling]:
        """None."""
        return []
