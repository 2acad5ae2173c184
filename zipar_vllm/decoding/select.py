"""Which sampler serves on a device."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from zipar_vllm.core.vocabulary import Vocabulary

from .sampler import StepSampler
from .table import StateTable

TRITON_CAPABILITY = (8, 0)
"""The first GPUs that the Triton kernel is compiled for in the tests."""


def select_sampler(table: StateTable, vocabulary: Vocabulary, device: torch.device) -> StepSampler:
    """The fastest sampler of a table's images that there is for this device."""
    if (
        device.type == "cuda"
        and find_spec("triton") is not None
        and torch.cuda.get_device_capability(device) >= TRITON_CAPABILITY
    ):
        from .triton_sampler import TritonSampler

        return TritonSampler(table, vocabulary, device)
    return StepSampler(table, vocabulary, device)
