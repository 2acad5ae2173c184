"""What a processor's flags mean."""

from __future__ import annotations

import os

import pytest

from zipar_vllm import cpu

XEON = "fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile"
EPYC = "fpu avx2 avx512f avx512_bf16"
LAPTOP = "fpu sse4_2 avx2"
GRAVITON = "fp asimd bf16"


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "num_cores", lambda: 1)


@pytest.mark.parametrize(
    ("fields", "native", "words"),
    [
        ({"model name": "Xeon", "flags": XEON}, True, "Xeon, AMX, 1 cores"),
        ({"model name": "EPYC", "flags": EPYC}, True, "EPYC, AVX-512 with bfloat16, 1 cores"),
        ({"model name": "Laptop", "flags": LAPTOP}, False, "Laptop, AVX2, 1 cores"),
        ({"model name": "ARM", "Features": GRAVITON}, True, "ARM, bfloat16, 1 cores"),
    ],
)
def test_flags(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], native: bool, words: str
) -> None:
    monkeypatch.setattr(cpu, "fields", lambda: fields)
    assert cpu.has_bfloat16() is native
    assert cpu.describe() == words


def test_threads_of_one_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    siblings = {"0": "0,2", "2": "0,2", "1": "1,3", "3": "1,3"}
    monkeypatch.setattr(cpu, "_read", lambda path: siblings[path.split("/cpu/cpu")[1][0]])
    assert cpu.num_cores() == 2
    monkeypatch.setattr(cpu, "_read", lambda path: "")  # a system that does not tell
    assert cpu.num_cores() == 4
