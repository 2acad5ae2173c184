"""The Triton kernels of :mod:`zipar_vllm.attention.triton_attention`: write, attend, merge.

Within a block and key head the cache holds the keys of all slots, then their values; a slot may be
wider than the head.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

UNWRITTEN = tl.constexpr(2**31 - 1)
"""As in :mod:`zipar_vllm.core.visibility`."""

HEADER = tl.constexpr(3)
ENTRY = tl.constexpr(6)
MERGE = tl.constexpr(4)
"""Lengths in the table. It begins with its number of entries, its number of merges and where
these stand. An entry is (lane, first input, inputs, first key, last key + 1, part or -1 where it
is the only one); a merge is (first input, inputs, first part, parts).
"""

FP8_MAX = tl.constexpr(448.0)
"""The largest number of float8 e4m3."""


@triton.jit
def write(
    key,
    value,
    cache,
    slots,
    key_scale,
    value_scale,
    key_stride,
    value_stride,
    KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    DIM: tl.constexpr,
):
    """Write an input's keys and values; an input without a slot (below 0) writes nothing."""
    PLANE: tl.constexpr = BLOCK_SIZE * WIDTH
    source = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + source).to(tl.int64)
    head = tl.arange(0, HEADS_PADDED)[:, None]
    dim = tl.arange(0, DIM)[None, :]
    loaded = (head < KV_HEADS) & (dim < HEAD_SIZE)
    at = head * HEAD_SIZE + dim
    k = tl.load(key + source * key_stride + at, mask=loaded, other=0.0)
    v = tl.load(value + source * value_stride + at, mask=loaded, other=0.0)
    if cache.dtype.element_ty != key.dtype.element_ty:
        k = tl.clamp(k.to(tl.float32) / key_scale, -FP8_MAX, FP8_MAX)
        v = tl.clamp(v.to(tl.float32) / value_scale, -FP8_MAX, FP8_MAX)
    block = cache + slot // BLOCK_SIZE * (2 * KV_HEADS * PLANE)
    at = head * (2 * PLANE) + slot % BLOCK_SIZE * WIDTH + dim
    # A slot's padding is written too, as zeros: it is read with the rest, in wide loads.
    stored = (head < tl.where(slot < 0, 0, KV_HEADS)) & (dim < WIDTH)
    tl.store(block + at, k.to(cache.dtype.element_ty), mask=stored)
    tl.store(block + at + PLANE, v.to(cache.dtype.element_ty), mask=stored)


@triton.jit
def _attend_to_keys(
    q,
    position,
    limit,
    cache,
    orders,
    blocks,
    begin,
    end,
    scale,
    BLOCK_STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Softmax of some rows over a lane's keys from ``begin`` to ``end``.

    Returns each row's highest score (in base 2), its total weight and its weighted values.
    """
    column = tl.arange(0, KEYS)
    dim = tl.arange(0, DIM)
    offsets = column[:, None] * WIDTH + dim[None, :]
    last_limit = tl.max(limit, 0)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, DIM], tl.float32)
    # Order and block come a tile ahead, so that the copies of keys never wait for them.
    order = tl.load(orders + begin + column, mask=begin + column < end, other=UNWRITTEN)
    block = tl.load(blocks + begin // BLOCK_SIZE)
    for start in range(begin, end, KEYS):
        # A slot that nobody sees is not read: what lies there may be no number at all.
        seen = (order <= last_limit)[:, None] & (dim < WIDTH)[None, :]
        keys = cache + (block * BLOCK_STRIDE + start % BLOCK_SIZE * WIDTH)
        k = tl.load(keys + offsets, mask=seen, other=0.0).to(q.dtype)
        v = tl.load(keys + BLOCK_SIZE * WIDTH + offsets, mask=seen, other=0.0).to(q.dtype)
        # Read again, not kept: what is kept costs registers, and this read hits the cache.
        order = tl.load(orders + start + column, mask=start + column < end, other=UNWRITTEN)
        visible = order[None, :] <= limit[:, None]
        visible &= column[None, :] <= (position - start)[:, None]
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(visible, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - anchor[:, None])
        kept = tl.exp2(highest - anchor)
        total = total * kept + tl.sum(weights, 1)
        found = tl.dot(weights.to(q.dtype), v, found * kept[:, None], input_precision="ieee")
        highest = higher
        ahead = start + KEYS + column
        order = tl.load(orders + ahead, mask=ahead < end, other=UNWRITTEN)
        following = start + KEYS
        block = tl.load(blocks + following // BLOCK_SIZE, mask=following < end, other=0)
    return highest, total, found


@triton.jit
def attend(
    query,
    cache,
    output,
    partial,
    sums,
    table,
    positions,
    limits,
    orders,
    blocks,
    scale,
    value_scale,
    query_stride,
    output_stride,
    orders_stride,
    blocks_stride,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Take entries of the table in turn, each times every key head, until none is left."""
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)[None, :]
    for item in range(tl.program_id(0), tl.load(table) * KV_HEADS, tl.num_programs(0)):
        entry = table + HEADER + item // KV_HEADS * ENTRY
        kv_head = item % KV_HEADS
        lane = tl.load(entry).to(tl.int64)
        source = (tl.load(entry + 1) + row // GROUP).to(tl.int64)
        used = row < tl.load(entry + 2) * GROUP
        begin = tl.load(entry + 3)
        part = tl.load(entry + 5).to(tl.int64)
        position = tl.load(positions + source, mask=used, other=-1).to(tl.int32)
        limit = tl.load(limits + source, mask=used, other=-1)
        head = kv_head * GROUP + row % GROUP
        loaded = used[:, None] & (dim < HEAD_SIZE)
        at = (source * query_stride + head * HEAD_SIZE)[:, None] + dim
        q = tl.load(query + at, mask=loaded, other=0.0)
        highest, total, found = _attend_to_keys(
            q,
            position,
            limit,
            cache + kv_head * (2 * BLOCK_SIZE * WIDTH),
            orders + lane * orders_stride,
            blocks + lane * blocks_stride,
            begin,
            tl.minimum(tl.load(entry + 4), tl.max(position, 0) + 1),
            scale,
            2 * KV_HEADS * BLOCK_SIZE * WIDTH,
            WIDTH,
            BLOCK_SIZE,
            DIM,
            ROWS,
            KEYS,
        )
        divisor = tl.where(total > 0, total, 1.0)
        result = (found * (value_scale / divisor)[:, None]).to(q.dtype)
        if part < 0:
            at = (source * output_stride + head * HEAD_SIZE)[:, None] + dim
            tl.store(output + at, result, mask=loaded)
        else:
            place = (part * KV_HEADS + kv_head) * ROWS + row
            logarithm = tl.where(total > 0, highest + tl.log2(divisor), float("-inf"))
            tl.store(sums + place, logarithm, mask=used)
            tl.store(partial + (place * HEAD_SIZE)[:, None] + dim, result, mask=loaded)


@triton.jit
def merge(
    partial,
    sums,
    output,
    table,
    output_stride,
    GROUP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    SLICE: tl.constexpr = 8,
    PARTS: tl.constexpr = 8,
):
    """Take merges of the table in turn, each times every key head and every ``SLICE`` rows."""
    SLICES: tl.constexpr = ROWS // SLICE
    dim = tl.arange(0, DIM)[None, :]
    merges = table + tl.load(table + 2)
    count = tl.load(table + 1) * (KV_HEADS * SLICES)
    for item in range(tl.program_id(0), count, tl.num_programs(0)):
        merge = merges + item // (KV_HEADS * SLICES) * MERGE
        kv_head = item // SLICES % KV_HEADS
        row = item % SLICES * SLICE + tl.arange(0, SLICE)
        used = row < tl.load(merge + 1) * GROUP
        first = tl.load(merge + 2).to(tl.int64)
        parts = tl.load(merge + 3)
        highest = tl.full([SLICE], float("-inf"), tl.float32)
        total = tl.zeros([SLICE], tl.float32)
        found = tl.zeros([SLICE, DIM], tl.float32)
        for begin in range(0, parts, PARTS):
            part = begin + tl.arange(0, PARTS)[:, None]
            there = (part < parts) & used[None, :]
            place = ((first + part) * KV_HEADS + kv_head) * ROWS + row[None, :]
            logarithm = tl.load(sums + place, mask=there, other=float("-inf"))
            values = tl.load(
                partial + (place * HEAD_SIZE)[:, :, None] + dim[None, :, :],
                mask=there[:, :, None] & (dim < HEAD_SIZE)[None, :, :],
                other=0.0,
            )
            higher = tl.maximum(highest, tl.max(logarithm, 0))
            anchor = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp2(logarithm - anchor[None, :])
            kept = tl.exp2(highest - anchor)
            total = total * kept + tl.sum(weights, 0)
            found = found * kept[:, None] + tl.sum(weights[:, :, None] * values, 0)
            highest = higher
        result = found / tl.where(total > 0, total, 1.0)[:, None]
        source = (tl.load(merge) + row // GROUP).to(tl.int64)
        at = source * output_stride + (kv_head * GROUP + row % GROUP) * HEAD_SIZE
        stored = used[:, None] & (dim < HEAD_SIZE)
        tl.store(output + at[:, None] + dim, result.to(output.dtype.element_ty), mask=stored)
