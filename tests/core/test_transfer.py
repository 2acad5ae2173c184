"""Copies to a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from zipar_vllm.core.transfer import to_device


def test_on_a_cpu_nothing_is_copied() -> None:
    array = np.arange(5)
    assert to_device(array, "cpu").data_ptr() == array.ctypes.data


def test_a_gpu_copies_from_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        calls.append("pin")
        return tensor

    def to(tensor: torch.Tensor, device: Any, non_blocking: bool) -> torch.Tensor:
        calls.append((str(device), non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    assert to_device(np.arange(3), torch.device("cuda")).tolist() == [0, 1, 2]
    assert calls == ["pin", ("cuda", True)]
