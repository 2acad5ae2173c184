"""The torch implementation: gather each lane's blocks, then scaled dot-product attention.

Runs everywhere and is the reference for faster kernels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .batch import LaneGroup, StepAttention


def write_kv(
    cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    """Store keys and values.

    Args:
        cache: ``[blocks, block_size, kv_heads, 2 * head_size]``, contiguous.
        key, value: ``[inputs, kv_heads, head_size]``.
        slot_mapping: int64 ``[inputs]``; a slot appears at most once.
    """
    flat = cache.view(-1, *cache.shape[2:])
    flat.index_copy_(0, slot_mapping, torch.cat([key, value], dim=-1))


def attend(
    query: torch.Tensor,
    cache: torch.Tensor,
    step: StepAttention,
    scale: float,
    output: torch.Tensor,
) -> None:
    """Attend over what each query may see.

    Args:
        query: ``[inputs, heads, head_size]``.
        cache: ``[blocks, block_size, kv_heads, 2 * head_size]``, this step's keys included.
        step: Which slots each query sees.
        scale: Multiplies the scores.
        output: ``[inputs, heads, head_size]``, written in place.
    """
    for group in step.groups:
        output[group.start : group.stop] = _attend_group(
            query[group.start : group.stop], cache, group, scale
        )


def _attend_group(
    query: torch.Tensor, cache: torch.Tensor, group: LaneGroup, scale: float
) -> torch.Tensor:
    _, block_size, kv_heads, kv_size = cache.shape
    inputs, heads, head_size = query.shape
    lanes, width = group.query_index.shape
    slots = group.block_table.shape[1] * block_size
    kv = cache.index_select(0, group.block_table.flatten()).view(lanes, slots, kv_heads, kv_size)
    key, value = kv.transpose(1, 2).split(head_size, dim=-1)
    # Query heads that share a key head become extra query rows: keys are read once for all.
    q = query[group.query_index].view(lanes, width, kv_heads, heads // kv_heads, head_size)
    q = q.permute(0, 2, 3, 1, 4).reshape(lanes, kv_heads, -1, head_size)
    out = F.scaled_dot_product_attention(q, key, value, attn_mask=group.bias, scale=scale)
    out = out.view(lanes, kv_heads, heads // kv_heads, width, head_size)
    out = out.permute(0, 3, 1, 2, 4).reshape(lanes * width, heads, head_size)
    return out[group.output_index]
