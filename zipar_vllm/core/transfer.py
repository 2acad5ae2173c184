"""Bring arrays to a device without waiting for it, and back."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray


def to_device(array: NDArray[Any] | torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A host array, or tensor, as a tensor on a device.

    CUDA copies behind the host's back from page-locked memory only, so the array is copied there
    first; torch keeps that memory until the copy is done. On a CPU the memory is shared.
    """
    tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
    kind = torch.device(device).type
    if kind == "cpu":
        return tensor
    if kind == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A device's tensor on the host, which waits until it is there.

    CUDA is waited for by an event: up to this copy, and not for what is launched after it.
    """
    copied = tensor.to("cpu", non_blocking=True)
    if tensor.device.type == "cuda":
        make_event: Any = torch.cuda.Event
        event = make_event()
        event.record()
        event.synchronize()
    return copied
