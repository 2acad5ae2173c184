"""Compare the engine's speed with another commit's, in alternating runs.

    python -m benchmarks.compare HEAD~1

Both trees run ``benchmarks.latency --engine zipar`` on the same machine and environment, one after
the other and again, so that both see whatever else the machine does. A ratio above 1 means that
this tree is faster. Writes ``benchmarks/results/compare.json`` and ``compare.md``; exits with 1 if
a ratio is below ``--least``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import machine_name
from benchmarks.report import RESULTS, command_line, markdown_table, write_results
from benchmarks.tether import run_tethered

ROOT = Path(__file__).resolve().parent.parent
Key = tuple[int, int, bool]
"""Window, requests at a time, guidance."""


@dataclass(frozen=True)
class Record:
    """One setting: images per second of each round, and the median of the rounds' ratios."""

    window: int
    requests: int
    guidance: bool
    before: list[float]
    after: list[float]
    ratio: float
    commit: str
    machine: str
    command: str


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """The files of a commit, in a folder of their own until the block is left."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(path), commit], check=True)
        try:
            yield path
        finally:
            subprocess.run([*git, "remove", "--force", str(path)], check=True)


def measure(tree: Path, options: argparse.Namespace) -> dict[Key, float]:
    """Images per second of a tree, by setting."""
    command = [sys.executable, "-m", "benchmarks.latency", "--engine", "zipar", "--json"]
    command += ["--repeats", str(options.repeats), "--command", "compare"]
    command += ["--windows", *map(str, options.windows)]
    command += ["--requests", *map(str, options.requests)]
    environment = os.environ | {"PYTHONPATH": str(tree), "VLLM_LOGGING_LEVEL": "ERROR"}
    output = run_tethered(command, tree, environment)
    line = next(x for x in reversed(output.splitlines()) if x.startswith('[{"mode"'))
    return {
        (row["window"], row["requests"], row["guidance"]): row["images_per_s"]
        for row in json.loads(line)
    }


def make_records(
    before: Sequence[Mapping[Key, float]],
    after: Sequence[Mapping[Key, float]],
    commit: str,
    machine: str,
    command: str,
) -> list[Record]:
    """One record per setting, from the rounds of both trees."""
    records = []
    for key in after[0]:
        old, new = [r[key] for r in before], [r[key] for r in after]
        ratio = statistics.median(n / o for n, o in zip(new, old, strict=True))
        records.append(Record(*key, old, new, round(ratio, 3), commit, machine, command))
    return records


def make_table(records: Sequence[Record]) -> str:
    first = records[0]
    rows = [
        [
            str(record.window),
            str(record.requests),
            "on" if record.guidance else "off",
            f"{statistics.median(record.before):.3f}",
            f"{statistics.median(record.after):.3f}",
            f"{record.ratio:.3f}",
        ]
        for record in records
    ]
    head = ["window", "at a time", "guidance", "images/s before", "after", "ratio"]
    title = [
        f"# Compared with {first.commit}",
        "",
        f"{first.machine}; `{first.command}`; {len(first.after)} rounds, alternating; the ratio is "
        "the median of the rounds' own.",
        "",
    ]
    return "\n".join([*title, *markdown_table(head, rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 24])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=5, help="per setting and round")
    parser.add_argument("--rounds", type=int, default=3, help="engine starts of each tree")
    parser.add_argument("--least", type=float, default=0.97, help="ratio that is still good")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    revision = ["git", "-C", str(ROOT), "rev-parse", "--short", options.commit]
    commit = subprocess.run(revision, capture_output=True, text=True, check=True).stdout.strip()
    before: list[dict[Key, float]] = []
    after: list[dict[Key, float]] = []
    with worktree(options.commit) as tree:
        for number in range(options.rounds):
            # First one first, then the other, so that neither always has the warmer machine.
            for results, path in [(before, tree), (after, ROOT)][:: 1 if number % 2 == 0 else -1]:
                results.append(measure(path, options))
                print(f"round {number}: {path.name} {results[-1]}", file=sys.stderr, flush=True)
    records = make_records(
        before, after, commit, machine_name(), command_line("benchmarks.compare")
    )
    write_results(options.output, "compare", [asdict(r) for r in records], make_table(records))
    print(make_table(records))
    if any(record.ratio < options.least for record in records):
        sys.exit(f"slower than {options.least} of {commit}")


if __name__ == "__main__":
    main()
