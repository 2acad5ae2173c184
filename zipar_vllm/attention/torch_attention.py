"""The torch implementation: gather each lane's blocks, then scaled dot-product attention.

Runs everywhere and is the reference for faster kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from zipar_vllm.core.transfer import to_device

from .interface import AttentionInputs, NotTiled


@dataclass(frozen=True, slots=True)
class LaneGroup:
    """Lanes whose queries are padded to the same number, so that they run as one dense batch.

    Attributes:
        start, stop: The group's range among the step's inputs.
        query_index: int64 ``[lanes, queries]``, each query's place in that range; padding
            repeats a lane's first query.
        output_index: int64 ``[stop - start]``, each input's place in ``lanes * queries``.
        block_table: int64 ``[lanes, blocks]``.
        bias: ``[lanes, 1, heads_per_kv_head * queries, blocks * block_size]`` in the model's
            dtype: 0 where a query sees a slot, -inf elsewhere.
        unseen: bool ``[lanes, blocks * block_size, 1, 1]``, the slots that no query sees.
    """

    start: int
    stop: int
    query_index: torch.Tensor
    output_index: torch.Tensor
    block_table: torch.Tensor
    bias: torch.Tensor
    unseen: torch.Tensor


@dataclass(frozen=True, slots=True)
class TorchMetadata:
    """Lanes grouped by how many queries they have: ready sets first, then prompts."""

    slot_mapping: torch.Tensor
    groups: tuple[LaneGroup, ...]


class TorchAttention(NotTiled):
    """Gathers keys and values, and lets torch attend over them.

    Args:
        heads_per_kv_head: Query heads that share a key head.
        dtype: The queries' dtype.
    """

    def __init__(self, heads_per_kv_head: int, dtype: torch.dtype) -> None:
        self._heads_per_kv_head = heads_per_kv_head
        self._dtype = dtype

    def prepare(self, step: AttentionInputs) -> TorchMetadata:
        """Group the lanes and work out each group's mask."""
        bounds = [(0, step.num_decoding), (step.num_decoding, len(step.lanes))]
        groups = tuple(self._group(step, first, last) for first, last in bounds if first < last)
        return TorchMetadata(step.slot_mapping, groups)

    def run(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        metadata: TorchMetadata,
        scale: float,
        output: torch.Tensor,
    ) -> None:
        """Write this step's keys and values, then attend; see :class:`AttentionKernel`."""
        blocks, kv_heads, block_size, size = cache.shape
        used = 2 * key.shape[-1]  # a slot may be wider
        # Slots outermost within a block, so that a lane's blocks gather into one run of slots.
        cache = cache.view(blocks, block_size, kv_heads, size)
        slots = cache.view(-1, kv_heads, size)
        slots[..., :used].index_copy_(0, metadata.slot_mapping, torch.cat([key, value], dim=-1))
        for group in metadata.groups:
            output[group.start : group.stop] = _attend(
                query[group.start : group.stop], cache, group, scale
            )

    def _group(self, step: AttentionInputs, first: int, last: int) -> LaneGroup:
        device = step.positions.device
        starts, ends = step.lane_starts[first:last], step.lane_starts[first + 1 : last + 1]
        start, stop = int(starts[0]), int(ends[-1])
        counts = ends - starts
        column = np.arange(int(counts.max()))
        used = column < counts[:, None]
        index = starts[:, None] - start + np.where(used, column, 0)
        query_index = to_device(index, device)
        blocks = int(step.last_positions[first:last].max()) // step.block_size + 1
        lanes = to_device(step.lanes[first:last], device)
        visible = visibility(
            step.orders[lanes, : blocks * step.block_size],
            step.positions[start:stop][query_index],
            step.limits[start:stop][query_index],
        )
        return LaneGroup(
            start=start,
            stop=stop,
            query_index=query_index,
            output_index=to_device(np.flatnonzero(used), device),
            block_table=step.block_table[lanes, :blocks],
            bias=_bias(visible, self._heads_per_kv_head, self._dtype),
            unseen=~visible.any(dim=1)[..., None, None],
        )


def visibility(orders: torch.Tensor, positions: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Apply the visibility rule: bool ``[lanes, queries, slots]``.

    Args:
        orders: int32 ``[lanes, slots]``, this step's writes included.
        positions: int64 ``[lanes, queries]``, the queries' raster positions.
        limits: int32 ``[lanes, queries]``, the highest order that each query sees.
    """
    columns = torch.arange(orders.shape[1], device=orders.device)
    visible = orders.unsqueeze(1) <= limits.unsqueeze(-1)
    return visible & (columns <= positions.unsqueeze(-1))


def _bias(visible: torch.Tensor, heads_per_kv_head: int, dtype: torch.dtype) -> torch.Tensor:
    """Write what is visible as an additive bias, once per query head that shares a key head."""
    lanes, _, slots = visible.shape
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    bias.masked_fill_(~visible, float("-inf"))
    return bias.repeat(1, heads_per_kv_head, 1).view(lanes, 1, -1, slots)


def _attend(
    query: torch.Tensor, cache: torch.Tensor, group: LaneGroup, scale: float
) -> torch.Tensor:
    _, block_size, kv_heads, kv_size = cache.shape
    _, heads, head_size = query.shape
    lanes, queries = group.query_index.shape
    slots = group.block_table.shape[1] * block_size
    kv = cache.index_select(0, group.block_table.flatten()).view(lanes, slots, kv_heads, kv_size)
    # Of what others left there, a number that is none would outlast a weight of zero.
    kv.masked_fill_(group.unseen, 0.0)
    key, value = kv[..., : 2 * head_size].transpose(1, 2).split(head_size, dim=-1)
    # Query heads that share a key head become extra query rows: keys are read once for all.
    q = query[group.query_index].view(lanes, queries, kv_heads, heads // kv_heads, head_size)
    q = q.permute(0, 2, 3, 1, 4).reshape(lanes, kv_heads, -1, head_size)
    out = F.scaled_dot_product_attention(q, key, value, attn_mask=group.bias, scale=scale)
    out = out.view(lanes, kv_heads, heads // kv_heads, queries, head_size)
    out = out.permute(0, 3, 1, 2, 4).reshape(lanes * queries, heads, head_size)
    return out[group.output_index]
