"""A step's arrays on their way to the device: what comes out is what went in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zipar_vllm.decoding import header
from zipar_vllm.decoding.header import BUCKETS, Field, StepHeader, bucket

FIELDS = {"small": Field(np.int32, padding=-1), "big": Field(np.int64), "real": Field(np.float32)}


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    tail=st.none() | st.integers(0, 60),
    padded=st.booleans(),
)
def test_any_step(counts: list[int], tail: int | None, padded: bool) -> None:
    sender, total = StepHeader(FIELDS, torch.device("cpu")), sum(counts)
    for shift in (0, 5):  # twice, into the same memory
        arrays = {
            name: [np.arange(n, dtype=field.dtype) + shift for n in counts]
            for name, field in FIELDS.items()
        }
        table = None if tail is None else np.arange(tail, dtype=np.int32) + shift
        found = sender.send(arrays, table, bucket(total) if padded else None)
        for name, own in arrays.items():
            assert found[name][:total].tolist() == np.concatenate(own).tolist()
            padding = found[name][total:].tolist()
            assert padding == [FIELDS[name].padding] * (bucket(total) - total if padded else 0)
        if table is not None:
            assert found["tail"][: len(table)].tolist() == table.tolist()


def test_a_captured_step_always_stands_at_the_same_place() -> None:
    sender = StepHeader(FIELDS, torch.device("cpu"))
    first = sender.send({}, np.zeros(90, dtype=np.int32), 16)
    places = {name: tensor.data_ptr() for name, tensor in first.items()}
    for count in (3, 16, 1):
        arrays = {"big": [np.arange(count)]}
        again = sender.send(arrays, np.zeros(5 * count, dtype=np.int32), 16)
        assert {name: tensor.data_ptr() for name, tensor in again.items()} == places
        assert all(place % 16 == 0 for place in places.values())
    assert [bucket(count) for count in (0, 8, 9, 512, 513)] == [8, 8, 16, 512, 1024]
    assert all(capacity % 8 == 0 for capacity in BUCKETS)


def test_no_memory_is_filled_again_before_its_copy_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the host's copy of a step is free once the event behind its copy came."""
    calls: list[tuple[str, int]] = []

    class Event:
        def __init__(self) -> None:
            self.number = len(made)
            made.append(self)

        def record(self) -> None:
            calls.append(("record", self.number))

        def synchronize(self) -> None:
            calls.append(("wait", self.number))

    made: list[Event] = []
    monkeypatch.setattr(header, "RING", 2)
    piece = header._Piece(FIELDS, 8, 0, torch.device("meta"))
    piece._events = [Event(), Event()]
    hosts: list[Any] = []
    for _ in range(3):
        hosts.append(piece.acquire())
        piece.copy(hosts[-1], 0)
    waits, records = [("wait", 0), ("wait", 1), ("wait", 0)], [("record", 0), ("record", 1)]
    assert calls == [waits[0], records[0], waits[1], records[1], waits[2], records[0]]
    assert hosts[0] is hosts[2] is not hosts[1]
