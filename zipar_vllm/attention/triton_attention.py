"""The GPU kernel, in Triton: paged, split over keys, each lane's keys read once for all queries.

A *tile* is the queries of a lane, all of them unless they are many, times the query heads that
share a key head. A tile goes over its lane's keys in *parts* of a fixed number of keys, so that
one lane keeps a whole GPU busy and no result depends on the batch; a second kernel merges what the
parts found, and a third one writes keys and values beforehand.

Which tiles there are stands in a table on the device, and launches depend on nothing but the
number of inputs, the tile's size and how many parts there is memory for. So a captured launch
serves any step that fits (:meth:`TritonAttention.shapes`).

It imports torch and triton only, as the kernels do (``triton_kernels.py``). Source of the
split over keys: "Flash-Decoding for long-context inference" (Dao et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from . import triton_kernels
from .interface import AttentionInputs, Ints, Tiling
from .triton_kernels import ENTRY, HEADER, MERGE

PART_KEYS = 512
"""Keys of a part: two lanes of 8,000 keys times eight key heads fill the 264 places of an H100."""

MAX_SPLIT_TILES = 4
"""Lanes of more tiles are not split: they keep a GPU busy as they are, and parts take memory."""

MAX_CAPTURED_PARTS = 2048
"""Parts that a captured launch has memory for, 60 lanes of 8,000 keys times two tiles: a step of
more keeps a GPU so busy that its launches need not be captured."""

STAGES = 3
"""Two tiles of keys on their way while one is worked on: copies reach as far ahead as memory is."""

LOG2_E = 1.4426950408889634
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, slots=True)
class TritonMetadata:
    """What every layer of a step needs, on the device.

    Attributes:
        table: int32, the tiles' entries and merges; see :mod:`.triton_kernels`.
        positions, limits, slot_mapping: As in ``AttentionInputs``; an input whose slot is below 0
            is padding.
        orders, block_table: As in ``AttentionInputs``.
        block_size: Slots per block.
        rows: Rows of a tile.
        parts: How many parts are to be merged, at most.
    """

    table: torch.Tensor
    positions: torch.Tensor
    limits: torch.Tensor
    slot_mapping: torch.Tensor
    orders: torch.Tensor
    block_table: torch.Tensor
    block_size: int
    rows: int
    parts: int


class TritonAttention:
    """Reads each lane's keys once for all its queries, straight from the paged cache.

    Within a block and key head the cache holds the keys of all slots, then their values. A slot
    may be wider than the head, for alignment. Keys and values may be float8 (e4m3), times a scale.

    Args:
        heads_per_kv_head: Query heads that share a key head.
        head_size: Numbers per head.
        dtype: The queries' dtype.
        device: Where it runs.
        part_keys: Keys of a part, a multiple of 64.
    """

    def __init__(
        self,
        heads_per_kv_head: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
        part_keys: int = PART_KEYS,
    ) -> None:
        self._group = heads_per_kv_head
        self._head_size = head_size
        self._dtype = dtype
        self._part_keys = part_keys
        # Without a GPU (Triton's interpreter) some programs, so that each takes several turns.
        is_cuda = device.type == "cuda"
        properties = torch.cuda.get_device_properties(device) if is_cuda else None
        self._processors = properties.multi_processor_count if properties else 2

    def prepare(self, step: AttentionInputs) -> TritonMetadata:
        """Divide the step in tiles and parts, unless that is done already."""
        tiling, table = step.tiling, step.tile_table
        if tiling is None or table is None:
            tiling = self.tile(step.lanes, step.lane_starts, step.last_positions)
            host, device = torch.from_numpy(tiling.table), step.positions.device
            if device.type == "cuda":
                host = host.pin_memory()
            table = host.to(device, non_blocking=True)
        return TritonMetadata(
            table=table,
            positions=step.positions,
            limits=step.limits,
            slot_mapping=step.slot_mapping,
            orders=step.orders,
            block_table=step.block_table,
            block_size=step.block_size,
            rows=tiling.rows,
            parts=tiling.parts,
        )

    def tile(self, lanes: Ints, lane_starts: Ints, last_positions: Ints) -> Tiling:
        """Lay a step out in tiles and parts; see :class:`AttentionKernel`."""
        starts, keys = torch.from_numpy(lane_starts), torch.from_numpy(last_positions) + 1
        counts = starts.diff()
        rows = tile_rows(int(counts.max()) * self._group, self._head_size, self._dtype)
        inputs = rows // self._group
        tiles = (counts + (inputs - 1)) // inputs
        parts = torch.where(tiles <= MAX_SPLIT_TILES, (keys - 1) // self._part_keys + 1, 1)
        entries = tiles * parts
        lane = torch.repeat_interleave(entries)
        place = torch.arange(len(lane)) - (entries.cumsum(0) - entries)[lane]
        # Tiles of the same keys stand together, so that only the first reads them from memory.
        tile, part = place % tiles[lane], place // tiles[lane]
        first = starts[lane] + tile * inputs
        count = (starts[lane + 1] - first).clamp(max=inputs)
        split = parts > 1
        begin = part * self._part_keys
        end = torch.where(split[lane], begin + self._part_keys, keys[lane]).minimum(keys[lane])
        numbers = torch.where(split, entries, 0)
        number = (numbers.cumsum(0) - numbers)[lane] + tile * parts[lane] + part
        own = torch.where(split[lane], number, -1)
        merged = split[lane] & (part == 0)
        merges = torch.stack([first, count, number, parts[lane]], 1)[merged]
        header = torch.tensor([len(lane), len(merges), HEADER.value + ENTRY.value * len(lane)])
        body = torch.stack([torch.from_numpy(lanes)[lane], first, count, begin, end, own], 1)
        table = torch.cat([header, body.view(-1), merges.view(-1)]).to(torch.int32)
        return Tiling(table.numpy(), rows, int(numbers.sum()))

    def shapes(self, num_inputs: int, max_keys: int) -> list[Tiling]:
        """A shape for tiles of every size that there may be; see :class:`AttentionKernel`."""
        split = (max_keys - 1) // self._part_keys + 1
        parts = min(split * num_inputs, MAX_CAPTURED_PARTS) if split > 1 else 0
        longest = HEADER.value + num_inputs * (ENTRY.value * split + MERGE.value)
        table = torch.zeros(longest, dtype=torch.int32).numpy()
        rows = tile_rows(self._group, self._head_size, self._dtype)
        most = tile_rows(num_inputs * self._group, self._head_size, self._dtype)
        return [Tiling(table, rows << n, parts) for n in range((most // rows).bit_length())]

    def run(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        metadata: TritonMetadata,
        scale: float,
        output: torch.Tensor,
        key_scale: float = 1.0,
        value_scale: float = 1.0,
    ) -> None:
        """Write this step's keys and values, then attend; see :class:`AttentionKernel`.

        Args:
            query, key, value, cache, metadata, scale, output: As there; ``cache`` may be float8.
            key_scale, value_scale: What float8 keys and values are to be multiplied by.
        """
        _, kv_heads, block_size, size = cache.shape
        dim = triton.next_power_of_2(self._head_size)
        rows, inputs = metadata.rows, query.shape[0]
        keys, warps = launch_shape(rows, self._head_size, query.dtype, block_size)
        head = {"KV_HEADS": kv_heads, "HEAD_SIZE": self._head_size, "DIM": dim}
        slot = {"WIDTH": size // 2, "BLOCK_SIZE": block_size}
        triton_kernels.write[(inputs,)](
            key,
            value,
            cache,
            metadata.slot_mapping,
            key_scale,
            value_scale,
            key.stride(0),
            value.stride(0),
            HEADS_PADDED=triton.next_power_of_2(kv_heads),
            **head,
            **slot,
        )
        partial = query.new_empty(metadata.parts, kv_heads, rows, self._head_size)
        sums = query.new_empty(metadata.parts, kv_heads, rows, dtype=torch.float32)
        programs = self._processors * (8 // warps)
        triton_kernels.attend[(programs,)](
            query,
            cache,
            output,
            partial,
            sums,
            metadata.table,
            metadata.positions,
            metadata.limits,
            metadata.orders,
            metadata.block_table,
            scale * LOG2_E * key_scale,
            value_scale,
            query.stride(0),
            output.stride(0),
            metadata.orders.stride(0),
            metadata.block_table.stride(0),
            GROUP=self._group,
            ROWS=rows,
            KEYS=keys,
            **head,
            **slot,
            num_warps=warps,
            num_stages=STAGES,
        )
        if metadata.parts:
            triton_kernels.merge[(2 * programs,)](
                partial,
                sums,
                output,
                metadata.table,
                output.stride(0),
                GROUP=self._group,
                ROWS=rows,
                **head,
            )


def supports(dtype: torch.dtype, heads_per_kv_head: int, head_size: int, block_size: int) -> bool:
    """Whether the kernel is written for such a model."""
    return (
        dtype in (torch.bfloat16, torch.float16, torch.float32)
        and 16 <= head_size <= 256
        and block_size % 16 == 0
        and heads_per_kv_head <= tile_rows(heads_per_kv_head, head_size, dtype)
    )


def tile_rows(rows: int, head_size: int, dtype: torch.dtype) -> int:
    """Rows of the tiles for lanes of so many: a power of two from 16 to what registers hold."""
    most = 32 if dtype == torch.float32 else 128
    most = most if head_size <= 128 else most // 2
    return int(min(most, max(16, triton.next_power_of_2(rows))))


def launch_shape(rows: int, head_size: int, dtype: torch.dtype, block_size: int) -> tuple[int, int]:
    """Keys that are read at a time, and warps: what compiles without spilling registers."""
    is_wide = dtype == torch.float32  # its products do not run on tensor cores
    keys = 32 if is_wide else 64
    keys = keys if head_size <= 128 else keys // 2
    keys = min(keys, block_size & -block_size)  # a tile of keys lies in one block
    is_large = rows > 64 or (rows == 64 and head_size > 128)
    return keys, 8 if is_wide or is_large else 4
