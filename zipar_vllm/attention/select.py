"""Which attention kernel serves a model."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from . import cpu_attention
from .interface import AttentionKernel
from .torch_attention import TorchAttention

TRITON_CAPABILITY = (8, 0)
"""The first GPUs whose tensor cores know bfloat16, and that copy to shared memory by themselves."""


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
    if (
        device.type == "cuda"
        and find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= TRITON_CAPABILITY
    ):
        from . import triton_attention

        if triton_attention.supports(dtype, heads_per_kv_head, head_size, block_size):
            return triton_attention.TritonAttention(heads_per_kv_head, head_size, dtype, device)
    return TorchAttention(heads_per_kv_head, dtype)
