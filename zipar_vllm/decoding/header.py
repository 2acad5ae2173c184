"""What a step needs of the host, in one piece of memory: filled, copied, seen on the device.

A piece has the same fields at the same places for every step that fits its capacity, so that a
captured step (:mod:`.graphs`) finds the numbers of the next one where those of the first were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .policy import NO_INTS

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Capacities; beyond the last they double. All are multiples of 8: fields stay aligned."""

RING = 3
"""Host copies of a piece: as many steps as may be under way, with a batch queue of two."""

_WORD = 4  # bytes


@dataclass(frozen=True, slots=True)
class Field:
    """One number per entry of a step: int64, int32 or float32.

    Attributes:
        dtype: Of the numbers.
        padding: What a captured step finds behind the last entry.
    """

    dtype: type[np.generic]
    padding: int = 0

    @property
    def words(self) -> int:
        """Words of 4 bytes per entry."""
        return np.dtype(self.dtype).itemsize // _WORD


class StepHeader:
    """Sends steps' arrays, one copy per step. On a CPU they stay where they are.

    Args:
        fields: By name.
        device: The model's device.
    """

    def __init__(self, fields: Mapping[str, Field], device: torch.device) -> None:
        # Numbers of 8 bytes first, so that they are aligned.
        self._fields = dict(sorted(fields.items(), key=lambda item: -item[1].words))
        self._device = device
        self._pieces: dict[tuple[int, bool], _Piece] = {}

    def send(
        self,
        arrays: Mapping[str, Sequence[NDArray[Any]]],
        tail: NDArray[np.int32] | None = None,
        capacity: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Bring a step to the device, without waiting for it.

        Args:
            arrays: By field, arrays that are joined; fields may be left out.
            tail: What follows the fields, of any length; for a captured step, no longer than when
                it was captured.
            capacity: Of a captured step: fields are seen at their full length, padded. Else just
                the entries that there are, of the fields that there are.

        Returns:
            Views by name, ``tail`` among them if there is one; valid until the next step.
        """
        if self._device.type == "cpu" and not capacity:
            return self._view(arrays, tail)
        counts = {name: sum(map(len, own)) for name, own in arrays.items()}
        tail_length = 0 if tail is None else len(tail)
        room = capacity or bucket(max(counts.values()))
        piece = self._piece(room, tail_length, bool(capacity))
        host = piece.acquire()
        for name, own in arrays.items():
            count, target = counts[name], host.arrays[name]
            if len(own) == 1:
                target[:count] = own[0]
            elif own:
                np.concatenate(own, out=target[:count])
        if capacity:
            for name, field in self._fields.items():
                host.arrays[name][counts.get(name, 0) :] = field.padding
        if tail is not None:
            host.arrays["tail"][:tail_length] = tail
        piece.copy(host, tail_length)
        if capacity:
            return piece.device.tensors
        if tail is not None:
            counts["tail"] = tail_length
        return piece.device.first(counts)

    def _view(
        self, arrays: Mapping[str, Sequence[NDArray[Any]]], tail: NDArray[np.int32] | None
    ) -> dict[str, torch.Tensor]:
        """The same on a CPU: each field where it is."""
        seen = {} if tail is None else {"tail": torch.from_numpy(tail)}
        for name, own in arrays.items():
            joined = join(own).astype(self._fields[name].dtype, copy=False)
            seen[name] = torch.from_numpy(joined)
        return seen

    def _piece(self, capacity: int, tail: int, is_captured: bool) -> _Piece:
        """Captured steps have their own: they look for it where it was from the start."""
        found = self._pieces.get((capacity, is_captured))
        if found is None or len(found.device.tensors["tail"]) < tail:
            # Longer than need be, so that it seldom has to grow.
            found = _Piece(self._fields, capacity, bucket(tail), self._device)
            self._pieces[capacity, is_captured] = found
        return found


def join(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays one after the other: a single one as it is, none as no numbers."""
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else NO_INTS


def bucket(count: int) -> int:
    """The smallest capacity for so many entries."""
    for capacity in BUCKETS:
        if count <= capacity:
            return capacity
    return int(1 << (count - 1).bit_length())


class _Memory:
    """A piece of memory and the fields in it.

    Attributes:
        words: int32, all of it.
        tensors: Views of it by field, ``tail`` last.
        arrays: The same as arrays, on the host.
        start: Where the tail begins.
    """

    def __init__(
        self,
        fields: Mapping[str, Field],
        capacity: int,
        tail: int,
        device: torch.device,
        pinned: bool = False,
    ) -> None:
        self.start = sum(field.words for field in fields.values()) * capacity
        length = self.start + tail
        self.words = torch.empty(length, dtype=torch.int32, device=device, pin_memory=pinned)
        self.tensors: dict[str, torch.Tensor] = {}
        start = 0
        for name, field in fields.items():
            stop = start + field.words * capacity
            dtype = torch.from_numpy(np.empty(0, dtype=field.dtype)).dtype
            self.tensors[name] = self.words[start:stop].view(dtype)
            start = stop
        self.tensors["tail"] = self.words[start:]
        self.arrays: dict[str, NDArray[Any]] = {}
        if device.type == "cpu":
            self.arrays = {name: tensor.numpy() for name, tensor in self.tensors.items()}

    def first(self, counts: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """The first entries of some fields."""
        return {name: self.tensors[name][:n] for name, n in counts.items()}


class _Piece:
    """Memory of one capacity: on the device, and a ring of it on the host."""

    def __init__(
        self, fields: Mapping[str, Field], capacity: int, tail: int, device: torch.device
    ) -> None:
        self.device = _Memory(fields, capacity, tail, device)
        self._ring = [self.device]
        self._events: list[Any] = [None]
        self._next = 0
        if device.type != "cpu":
            is_cuda, host = device.type == "cuda", torch.device("cpu")
            self._ring = [_Memory(fields, capacity, tail, host, is_cuda) for _ in range(RING)]
            event: Any = torch.cuda.Event if is_cuda else lambda: None
            self._events = [event() for _ in range(RING)]

    def acquire(self) -> _Memory:
        """Memory to fill: the one whose copy was begun the longest ago, once it is done."""
        event = self._events[self._next]
        if event is not None:
            event.synchronize()  # at once, where none was begun
        return self._ring[self._next]

    def copy(self, host: _Memory, tail: int) -> None:
        """Copy the fields and some of the tail."""
        if host is not self.device:
            length = host.start + tail
            self.device.words[:length].copy_(host.words[:length], non_blocking=True)
            if self._events[self._next] is not None:
                self._events[self._next].record()
            self._next = (self._next + 1) % RING
