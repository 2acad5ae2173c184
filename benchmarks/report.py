"""What every benchmark does with its figures: name the machine and the command, write files."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
CPU_FLAGS = {
    "AMX": "amx_tile",
    "AVX-512 with bfloat16": "avx512_bf16",
    "AVX-512": "avx512f",
    "AVX2": "avx2",
}


def write_results(folder: Path, name: str, listing: object, text: str) -> None:
    """Write what was measured as JSON, and what to read of it as Markdown, under one name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(listing, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, line by line."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def command_line(module: str, words: Sequence[str] | None = None) -> str:
    """The command that gave the figures; ``words`` are its arguments where not this process's."""
    return " ".join(["python -m", module, *(sys.argv[1:] if words is None else words)])


def machine_name() -> str:
    """The processor, what it has for matrices, and how many cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    named = {name.strip(): value.strip() for name, value in fields.items()}
    model = named.get("model name") or platform.processor() or platform.machine()
    flags = named.get("flags", "").split()
    best = next((name for name, flag in CPU_FLAGS.items() if flag in flags), None)
    parts = [model, *([best] if best else []), f"{len(os.sched_getaffinity(0))} cores"]
    return ", ".join(parts)
