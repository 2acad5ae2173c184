"""Copies to a device."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from zipar_vllm.core.transfer import to_device, to_host


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


def test_a_gpu_is_waited_for_by_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    tensor = MagicMock(device=torch.device("cuda"))
    tensor.to = lambda device, non_blocking: (device, non_blocking)
    event = MagicMock()
    event.record, event.synchronize = (partial(calls.append, name) for name in ("record", "wait"))
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    assert to_host(tensor) == ("cpu", True)
    assert calls == ["record", "wait"]


def test_a_cpu_is_not_waited_for() -> None:
    tensor = torch.arange(3)
    assert to_host(tensor) is tensor
