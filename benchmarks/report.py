"""What every benchmark does with its figures: name the command, write files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


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
