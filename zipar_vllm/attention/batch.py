"""What attention needs to know of a step: who asks, what it may see, where keys lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LaneGroup:
    """Lanes whose queries are padded to one width, so that they run as one dense batch.

    A lane is one sequence of KV slots: an image has one, or two under guidance.

    Attributes:
        start, stop: The group's range among the step's flat inputs.
        query_index: int64 ``[lanes, width]``, each query's place in that range; padding
            repeats a lane's first query.
        output_index: int64 ``[stop - start]``, each input's place in ``lanes * width``.
        block_table: int64 ``[lanes, blocks]``, physical block of each logical one; blocks past
            a lane's end name any valid block.
        bias: ``[lanes, 1, heads_per_kv_head * width, blocks * block_size]`` in the model's
            dtype: 0 where a query sees a slot, -inf elsewhere.
    """

    start: int
    stop: int
    query_index: torch.Tensor
    output_index: torch.Tensor
    block_table: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepAttention:
    """One step's attention, the same for every layer.

    Attributes:
        slot_mapping: int64 ``[inputs]``, physical slot each input's key and value go to.
        groups: Cover all inputs, in order, without gaps.
    """

    slot_mapping: torch.Tensor
    groups: tuple[LaneGroup, ...]


def visibility_bias(
    written: torch.Tensor, query_positions: torch.Tensor, heads_per_kv_head: int, dtype: torch.dtype
) -> torch.Tensor:
    """The visibility rule as an additive bias: a query sees written slots at or before it.

    Args:
        written: bool ``[lanes, slots]``, this step's writes included.
        query_positions: int64 ``[lanes, width]``, raster positions.
        heads_per_kv_head: Query heads that share a key head; their rows are repeated.
        dtype: The queries' dtype.

    Returns:
        ``[lanes, 1, heads_per_kv_head * width, slots]``.
    """
    lanes, slots = written.shape
    width = query_positions.shape[1]
    positions = torch.arange(slots, device=written.device)
    visible = written.unsqueeze(1) & (positions <= query_positions.unsqueeze(-1))
    bias = torch.zeros(lanes, 1, width, slots, dtype=dtype, device=written.device)
    bias.masked_fill_(~visible.unsqueeze(1), float("-inf"))
    if heads_per_kv_head == 1:
        return bias
    return bias.repeat(1, 1, heads_per_kv_head, 1)
