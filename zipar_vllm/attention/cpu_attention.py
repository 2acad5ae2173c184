"""The CPU kernel: cpu_attention.cpp, built once with the machine's own compiler."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from zipar_vllm.core.native import load_native

from .interface import AttentionInputs, NotTiled

SOURCE = Path(__file__).with_name("cpu_attention.cpp")
VECTOR = 16


@dataclass(frozen=True, slots=True)
class CPUMetadata:
    """A step as the kernel takes it: addresses, and the arrays that are there.

    Attributes:
        inputs: Addresses of the slots, positions and limits of the inputs, and of the lanes' first
            inputs.
        num_lanes: Lanes of the step.
        lanes: Addresses of the lanes' block tables and orders.
        arrays: Kept alive while the addresses are in use.
    """

    inputs: tuple[int, int, int, int]
    num_lanes: int
    lanes: tuple[int, int]
    arrays: tuple[object, ...]


class CPUAttention(NotTiled):
    """Reads each lane's keys once for all its queries, straight from the paged cache."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._attend = library.zipar_attend

    def prepare(self, step: AttentionInputs) -> CPUMetadata:
        """Find the lanes' tables in memory."""
        blocks, orders = step.block_table, step.orders
        lane_blocks = blocks.data_ptr() + step.lanes * (blocks.stride(0) * 8)
        lane_orders = orders.data_ptr() + step.lanes * (orders.stride(0) * 4)
        return CPUMetadata(
            inputs=(
                step.slot_mapping.data_ptr(),
                step.positions.data_ptr(),
                step.limits.data_ptr(),
                step.lane_starts.ctypes.data,
            ),
            num_lanes=len(step.lanes),
            lanes=(lane_blocks.ctypes.data, lane_orders.ctypes.data),
            arrays=(step, lane_blocks, lane_orders),
        )

    def run(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        metadata: CPUMetadata,
        scale: float,
        output: torch.Tensor,
    ) -> None:
        """Write this step's keys and values, then attend; see :class:`AttentionKernel`."""
        _, kv_heads, block_size, size = cache.shape
        self._attend(
            query.element_size(),
            query.data_ptr(),
            query.stride(0),
            key.data_ptr(),
            key.stride(0),
            value.data_ptr(),
            value.stride(0),
            output.data_ptr(),
            output.stride(0),
            cache.data_ptr(),
            cache.stride(0),
            *metadata.inputs,
            metadata.num_lanes,
            *metadata.lanes,
            scale,
            query.shape[1],
            kv_heads,
            size // 2,
            block_size,
        )


def supports(dtype: torch.dtype, head_size: int, block_size: int) -> bool:
    """Whether the kernel is written for such a model, and could be built here."""
    if dtype not in (torch.bfloat16, torch.float32) or head_size % VECTOR or block_size % VECTOR:
        return False
    library = load_library()
    return (
        library is not None
        and head_size <= library.zipar_max_head_size()
        and block_size <= library.zipar_max_block_size()
    )


@cache
def load_library() -> ctypes.CDLL | None:
    """The kernel, ready to be called; None where it could not be built."""
    library = load_native(SOURCE)
    if library is None:
        return None
    pointer: Any = ctypes.c_void_p
    integer: Any = ctypes.c_int64
    library.zipar_attend.restype = None
    library.zipar_attend.argtypes = [
        ctypes.c_int,
        *[pointer, integer] * 5,
        *[pointer] * 4,
        integer,
        *[pointer] * 2,
        ctypes.c_float,
        *[integer] * 4,
    ]
    return library
