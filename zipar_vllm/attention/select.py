"""Which attention kernel serves a model."""

from __future__ import annotations

import torch

from . import cpu_attention
from .interface import AttentionKernel
from .torch_attention import TorchAttention


def select_kernel(
    device: torch.device,
    dtype: torch.dtype,
    heads_per_kv_head: int,
    head_size: int,
    block_size: int,
) -> AttentionKernel:
    """The fastest kernel that supports the model on this device."""
    if device.type == "cpu" and cpu_attention.supports(dtype, head_size, block_size):
        library = cpu_attention.load_library()
        if library is not None:
            return cpu_attention.CPUAttention(library)
    return TorchAttention(heads_per_kv_head, dtype)
