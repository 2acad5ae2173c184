"""Compare the engine's speed with another commit's, picture by picture.

    python -m benchmarks.compare HEAD~1

Both trees' engines run beside one another, in the same environment, and draw in turns: whatever
else the machine does in a minute, both see. A ratio above 1 means that this tree is faster. Writes
``benchmarks/results/compare.json`` and ``compare.md``; exits with 1 if a ratio is below
``--least``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path

from benchmarks.machine import Bystanders, busy_sentence, machine_name
from benchmarks.paired_engine import ANSWER
from benchmarks.report import RESULTS, command_line, markdown_table, write_results

ROOT = Path(__file__).resolve().parent.parent
PAUSE = 0.3
"""Seconds between two draws: the threads of the engine that is done spin a while."""

Setting = tuple[int, int, bool]
"""Window, requests at a time, guidance."""


@dataclass(frozen=True)
class Record:
    """One setting: seconds of both trees' draws, and the median of the pairs' ratios.

    Attributes:
        low, high: Where the true median is, at 95 % confidence.
    """

    window: int
    requests: int
    guidance: bool
    before: list[float]
    after: list[float]
    ratio: float
    low: float
    high: float
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


class Engine:
    """The engine of a tree, in a process of its own, which ends with the block."""

    def __init__(self, tree: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "paired_engine.py")],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree), "VLLM_LOGGING_LEVEL": "ERROR"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # and all that it started
        self._process.communicate()

    def wait(self) -> None:
        """Wait until it is ready to draw."""
        self._answer()

    def draw(self, setting: Setting) -> float:
        """Seconds that it takes."""
        assert self._process.stdin is not None
        print(json.dumps(setting), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return float(line.removeprefix(ANSWER))
        raise RuntimeError(f"an engine ended with code {self._process.wait()}")


def measure(engines: tuple[Engine, Engine], setting: Setting, pairs: int) -> list[list[float]]:
    """Seconds of each engine's draws, taken in turns, each first in every other pair."""
    seconds: list[list[float]] = [[], []]
    for engine in engines:
        engine.draw(setting)  # warms up
    for number in range(pairs):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            time.sleep(PAUSE)
            seconds[which].append(engines[which].draw(setting))
    return seconds


def make_record(
    setting: Setting,
    seconds: Sequence[Sequence[float]],
    commit: str,
    machine: str,
    command: str,
) -> Record:
    """Summarise a setting; the interval is the binomial one of a median."""
    before, after = seconds
    ratios = sorted(old / new for old, new in zip(before, after, strict=True))
    outside = max(0, int(len(ratios) / 2 - 0.98 * sqrt(len(ratios))))
    return Record(
        *setting,
        before=[round(own, 4) for own in before],
        after=[round(own, 4) for own in after],
        ratio=round(statistics.median(ratios), 3),
        low=round(ratios[outside], 3),
        high=round(ratios[-1 - outside], 3),
        commit=commit,
        machine=machine,
        command=command,
    )


def make_table(records: Sequence[Record], busy_cores: float) -> str:
    first = records[0]
    rows = [
        [
            str(record.window),
            str(record.requests),
            "on" if record.guidance else "off",
            f"{record.requests / statistics.median(record.before):.3f}",
            f"{record.requests / statistics.median(record.after):.3f}",
            f"{record.ratio:.3f}",
            f"{record.low:.3f} to {record.high:.3f}",
        ]
        for record in records
    ]
    head = ["window", "at a time", "guidance", "images/s before", "after", "ratio", "95 %"]
    title = [
        f"# Compared with {first.commit}",
        "",
        f"{first.machine}; `{first.command}`; {len(first.after)} pairs of draws, in turns; the "
        f"ratio is the median of the pairs' own. {busy_sentence(busy_cores)}",
        "",
    ]
    return "\n".join([*title, *markdown_table(head, rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 24])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--pairs", type=int, default=20, help="draws of each tree, per setting")
    parser.add_argument("--least", type=float, default=0.98, help="ratio that is still good")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    revision = ["git", "-C", str(ROOT), "rev-parse", "--short", options.commit]
    commit = subprocess.run(revision, capture_output=True, text=True, check=True).stdout.strip()
    about = commit, machine_name(), command_line("benchmarks.compare")
    bystanders, records = Bystanders(), []
    with ExitStack() as stack:
        tree = stack.enter_context(worktree(options.commit))
        before = stack.enter_context(Engine(tree))
        before.wait()  # one after the other: each looks for how much memory is free
        after = stack.enter_context(Engine(ROOT))
        after.wait()
        for guidance in (False, True):
            for window in options.windows:
                for requests in options.requests:
                    setting = window, requests, guidance
                    seconds = measure((before, after), setting, options.pairs)
                    records.append(make_record(setting, seconds, *about))
                    print(f"{setting}: {records[-1].ratio}", file=sys.stderr, flush=True)
        busy = bystanders.busy_cores()
    raw = [{**asdict(record), "busy_cores": busy} for record in records]
    write_results(options.output, "compare", raw, make_table(records, busy))
    print(make_table(records, busy))
    if any(record.ratio < options.least for record in records):
        sys.exit(f"slower than {options.least} of {commit}")


if __name__ == "__main__":
    main()
