"""What the processor can do: read from the system, without torch or vLLM."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""Of x86 with AVX-512 or AMX, and of ARM."""

FEATURES = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "bf16": "bfloat16",
}
"""Instructions that decide how fast matrices are, the best first, in words."""


@cache
def fields() -> dict[str, str]:
    """``/proc/cpuinfo`` of the first processor; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in lines}


def flags() -> frozenset[str]:
    """Names of the instruction sets."""
    return frozenset(fields().get("flags", fields().get("Features", "")).split())


def has_bfloat16() -> bool:
    """Whether matrices of bfloat16 are multiplied by instructions of their own.

    Where they are not, bfloat16 is emulated and slower than float32.
    """
    return not flags().isdisjoint(BFLOAT16_FLAGS)


def num_cores() -> int:
    """Physical cores that this process may use; two threads of one core count once."""
    allowed = os.sched_getaffinity(0)
    siblings = {
        _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        for cpu in allowed
    }
    return len(siblings)


def describe() -> str:
    """Name, instructions and cores, for a report."""
    name = fields().get("model name") or platform.processor() or platform.machine()
    features = next((words for flag, words in FEATURES.items() if flag in flags()), None)
    return ", ".join([name, *([features] if features else []), f"{num_cores()} cores"])


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
