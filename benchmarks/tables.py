"""Fill the tables of README and docs from the result files.

    python -m benchmarks.tables

A table stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; what belongs there is made from
``benchmarks/results/``. A test holds the pages and the results together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import roofline
from benchmarks.report import RESULTS, markdown_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/load.md", "docs/numerics.md", "docs/performance.md")
BLOCK = re.compile(r"(<!-- ([\w-]+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def fill(page: str) -> str:
    """A page with its tables made anew.

    Raises:
        KeyError: nobody knows what belongs into a block.
    """

    def replace(block: re.Match[str]) -> str:
        start, name, end = block.groups()
        return f"{start}\n" + "\n".join(TABLES[name]()) + f"\n\n{end}"

    return BLOCK.sub(replace, page)


def latency_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Stock vLLM and the windows, widest first, without guidance; ratios are to stock."""
    plain = [record for record in records if not record["guidance"]]
    by_key = {(r["mode"], r["window"], r["requests"]): r for r in plain}
    engines = sorted({(r["mode"], r["window"]) for r in plain}, key=lambda e: -(e[1] or 1 << 30))
    counts = sorted({record["requests"] for record in plain})
    widest = max(window or 0 for _, window in engines)
    rows = []
    for mode, window in engines:
        own = [by_key[mode, window, count] for count in counts]
        name = f"window {window}" + ", raster order" * (window == widest)
        cells = [name if window else "stock vLLM", str(own[0]["steps"])]
        cells.append(f"{own[0]['latency_s_p50']:.2f}")
        for record in own:
            rate = record["images_per_s"]
            ratio = rate / by_key["stock", None, record["requests"]]["images_per_s"]
            cells.append(f"{rate:.2f}" + (f" ({ratio:.1f}x)" if window else ""))
        rows.append(cells)
    first, *others = counts
    head = ["", "forward passes", "latency, s", f"images/s, {first} at a time"]
    return markdown_table(head + [f"{count} at a time" for count in others], rows)


def _latency(
    name: str, table: Callable[[Sequence[dict[str, Any]]], list[str]] = latency_table
) -> list[str]:
    records = json.loads((RESULTS / f"{name}.json").read_text())
    first = records[0]
    where = f"{first['machine']}, {first['dtype']}; `{first['command']}`:"
    return [where, "", *table(records)]


def step_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Where a step's time goes, without guidance, fewest and most images at a time."""
    plain = [r for r in records if not r["guidance"] and r["mode"] == "zipar"]
    counts = {record["requests"] for record in plain}
    parts = ("prepare", "forward", "sample", "overhead", "total")
    rows = [
        [str(r["window"]), str(r["requests"]), *(f"{r['step_ms'][part]:.2f}" for part in parts)]
        for r in sorted(plain, key=lambda record: (-record["window"], record["requests"]))
        if r["requests"] in (min(counts), max(counts))
    ]
    return markdown_table(["window", "images", *(f"{part}, ms" for part in parts)], rows)


def drafts_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Windows, widest first, with drafts and without; ratios are to the same without."""
    by_key = {(r["window"], str(r["drafts"]), r["requests"]): r for r in records}
    windows = sorted({record["window"] for record in records}, reverse=True)
    numbers = list(dict.fromkeys(str(record["drafts"]) for record in records))
    counts = sorted({record["requests"] for record in records})
    rows = []
    for window in windows:
        for number in numbers:
            own = [by_key[window, number, count] for count in counts]
            name = f"window {window}" + ", raster order" * (window == windows[0])
            cells = [name, number, f"{own[0]['passes']:.0f}"]
            for record in own:
                words = f" ({record['speedup']:.2f}x)" if number != numbers[0] else ""
                cells.append(f"{record['images_per_s']:.2f}{words}")
            rows.append(cells)
    first, *others = counts
    head = ["", "drafts", f"forward passes, {first} at a time", f"images/s, {first} at a time"]
    return markdown_table(head + [f"{count} at a time" for count in others], rows)


def _drafts(name: str) -> list[str]:
    records = json.loads((RESULTS / f"{name}.json").read_text())
    records = [record for record in records if record["drafts"] in (0, 8, "auto")]
    return [f"{records[0]['circumstances']}:", "", *drafts_table(records)]


def http_table(records: Sequence[dict[str, Any]]) -> list[str]:
    """Images per second through HTTP, not streaming, by window and clients."""
    plain = [record for record in records if not record["streaming"]]
    by_key = {(r["window"], r["concurrency"]): r["images_per_s"] for r in plain}
    windows = sorted({record["window"] for record in plain}, reverse=True)
    clients = sorted({record["concurrency"] for record in plain})
    rows = []
    for window in windows:
        cells = [f"window {window}" + ", raster order" * (window == windows[0])]
        for count in clients:
            ratio = by_key[window, count] / by_key[windows[0], count]
            words = f" ({ratio:.1f}x)" if window != windows[0] else ""
            cells.append(f"{by_key[window, count]:.2f}{words}")
        rows.append(cells)
    first, *others = clients
    head = ["", f"images/s, {first} client" + "s" * (first > 1), *(f"{n} clients" for n in others)]
    return markdown_table(head, rows)


def _pixel_delay() -> list[str]:
    result = json.loads((RESULTS / "pixel_delay.json").read_text())
    rows = [
        [name, f"{min(steps):.1f} to {max(steps):.1f}"]
        for name in ("fast", "slow")
        for steps in [result[f"step_ms_{name}"]]
    ]
    where = f"{result['machine']}; `{result['command']}`"
    return [where, "", *markdown_table(["drawing", "ms per step"], rows)]


def _whole(name: str) -> list[str]:
    """All of a result's own text but its title."""
    return (RESULTS / f"{name}.md").read_text().strip().splitlines()[2:]


TABLES: dict[str, Callable[[], list[str]]] = {
    "latency": lambda: _latency("latency"),
    "latency-avx2": lambda: _latency("latency_avx2"),
    "drafts": lambda: _drafts("drafts"),
    "latency-llamagen-b": lambda: _latency("latency_llamagen_b"),
    "step": lambda: _latency("latency", step_table),
    "admission": lambda: _whole("admission"),
    "memory": roofline.memory_table,
    "free-inputs": roofline.free_inputs_table,
    "roofline": roofline.roofline_table,
    "grids": roofline.grid_table,
    "http": lambda: http_table(json.loads((RESULTS / "load.json").read_text())),
    "load": lambda: _whole("load"),
    "soak": lambda: _whole("soak"),
    "numerics": lambda: _whole("numerics"),
    "pixel-delay": _pixel_delay,
}


def main() -> None:
    for name in PAGES:
        page = ROOT / name
        page.write_text(fill(page.read_text()))


if __name__ == "__main__":
    main()
