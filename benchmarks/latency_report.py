"""What the latency benchmark measured: its records, from single runs to tables."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.machine import busy_sentence
from benchmarks.report import markdown_table

PARTS = ("prepare", "forward", "sample", "overhead")
GUIDANCE_NOTE = "Two lanes per image. Stock vLLM has none: ratios are to the widest window."


@dataclass(frozen=True)
class Setting:
    """What is decoded: a window (None for stock vLLM), requests at a time, with guidance or not."""

    window: int | None
    requests: int
    guidance: bool


@dataclass(frozen=True)
class Run:
    """One repeat: wall seconds, steps per image, and the worker's own counts, if it has any."""

    seconds: float
    steps: int
    times: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Circumstances:
    """Where and how it was measured: the same for all settings of an engine.

    ``busy_cores`` is the mean number of cores that other processes used meanwhile.
    """

    machine: str
    dtype: str
    command: str
    busy_cores: float = 0.0
    peak_rss_mb: float = 0.0


@dataclass(frozen=True)
class Record:
    """One measured setting.

    ``steps`` counts the forward passes of one image. ``step_ms`` splits the wall time of a step;
    stock vLLM does not tell its parts, only the total.
    """

    mode: str
    window: int | None
    requests: int
    guidance: bool
    images_per_s: float
    latency_s_p50: float
    steps: int
    step_ms: dict[str, float | None]
    peak_rss_mb: float
    machine: str
    dtype: str
    busy_cores: float
    command: str


def step_ms(run: Run) -> dict[str, float | None]:
    """Milliseconds per step, by part and in total."""
    times = run.times
    if times is None:
        return {**dict.fromkeys(PARTS), "total": 1e3 * run.seconds / run.steps}
    steps = times["steps"]
    total = 1e3 * run.seconds / steps
    parts = {name: 1e3 * times[name] / steps for name in ("prepare", "forward", "sample")}
    return {**parts, "overhead": total - sum(parts.values()), "total": total}


def make_record(
    mode: str, setting: Setting, runs: Sequence[Run], circumstances: Circumstances
) -> Record:
    """Summarise the repeats by the median one, so that its parts add up to its total."""
    middle = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
    seconds = statistics.median(run.seconds for run in runs)
    return Record(
        mode=mode,
        window=setting.window,
        requests=setting.requests,
        guidance=setting.guidance,
        images_per_s=round(setting.requests / seconds, 4),
        latency_s_p50=round(seconds, 4),
        steps=middle.steps,
        step_ms={
            name: None if value is None else round(value, 3)
            for name, value in step_ms(middle).items()
        },
        peak_rss_mb=circumstances.peak_rss_mb,
        machine=circumstances.machine,
        dtype=circumstances.dtype,
        busy_cores=circumstances.busy_cores,
        command=circumstances.command,
    )


def merge_rounds(records: Iterable[Record]) -> list[Record]:
    """One record per setting, of all its rounds: the median one, with the greatest peak."""
    rounds = defaultdict(list)
    for record in records:
        rounds[record.mode, record.window, record.requests, record.guidance].append(record)
    merged = []
    for same in rounds.values():
        middle = sorted(same, key=lambda record: record.latency_s_p50)[len(same) // 2]
        busy = round(statistics.mean(record.busy_cores for record in same), 2)
        peak = max(record.peak_rss_mb for record in same)
        merged.append(replace(middle, busy_cores=busy, peak_rss_mb=peak))
    return sorted(merged, key=lambda record: record.mode != "stock")


def make_tables(records: Sequence[Record]) -> str:
    """The records as Markdown: one section without guidance, one with it."""
    parts = ["# Latency and throughput", "", _where(records), ""]
    plain = [record for record in records if not record.guidance]
    guided = [record for record in records if record.guidance]
    parts += ["## Without guidance", "", *_table(plain)]
    if guided:
        parts += ["", "## With guidance", "", GUIDANCE_NOTE, ""]
        parts += _table(guided)
    parts += ["", "## One step, milliseconds", "", *_split(records)]
    parts += ["", *_memory(records)]
    return "\n".join(parts) + "\n"


def _where(records: Sequence[Record]) -> str:
    first = records[0]
    busy = statistics.mean(record.busy_cores for record in records)
    return f"{first.machine}, {first.dtype}; `{first.command}`. {busy_sentence(busy)}"


def _name(record: Record) -> str:
    return "stock vLLM" if record.mode == "stock" else f"ZipAR, window {record.window}"


def _base(records: Sequence[Record]) -> tuple[str, int | None]:
    """What ratios are taken to: stock vLLM, or our own raster decoding where stock has no row."""
    if any(record.mode == "stock" for record in records):
        return "stock", None
    return "zipar", max(record.window or 0 for record in records)


def _rate(record: Record | None, base: Record | None) -> str:
    if record is None:
        return ""
    ratio = f" ({record.images_per_s / base.images_per_s:.2f}x)" if base else ""
    return f"{record.images_per_s:.3f}{ratio}"


def _table(records: Sequence[Record]) -> list[str]:
    """Latency at batch 1 and images/s, with ratios to the base: stock, else our widest window."""
    counts = sorted({record.requests for record in records})
    by_key = {(record.mode, record.window, record.requests): record for record in records}
    head = ["", "steps", "latency at 1, s", *(f"images/s at {n}" for n in counts)]
    head.append("share of the step ratio")
    rows = []
    base = _base(records)
    for mode, window in dict.fromkeys((record.mode, record.window) for record in records):
        own = {n: by_key[mode, window, n] for n in counts if (mode, window, n) in by_key}
        some, single = next(iter(own.values())), own.get(1)
        cells = [_name(some), str(some.steps), f"{single.latency_s_p50:.2f}" if single else ""]
        for n in counts:
            cells.append(_rate(own.get(n), by_key.get((*base, n))))
        share = step_ratio_share(single, by_key.get((*base, 1)))
        cells.append(f"{share:.2f}" if share is not None and (mode, window) != base else "")
        rows.append(cells)
    return markdown_table(head, rows)


def step_ratio_share(record: Record | None, stock: Record | None) -> float | None:
    """How much of the fewer steps arrives as speed: 1 if a step costs what a stock step does."""
    if record is None or stock is None:
        return None
    return (stock.latency_s_p50 / record.latency_s_p50) / (stock.steps / record.steps)


def _split(records: Sequence[Record]) -> list[str]:
    names = (*PARTS, "total")
    rows = []
    for record in records:
        values = [record.step_ms[name] for name in names]
        cells = ["" if value is None else f"{value:.2f}" for value in values]
        guidance = "on" if record.guidance else "off"
        rows.append([_name(record), str(record.requests), guidance, *cells, _rest(record)])
    head = ["", "at a time", "guidance", *names, "all but forward"]
    return markdown_table(head, rows)


def _rest(record: Record) -> str:
    """The share of a step that is not the model's."""
    forward, total = record.step_ms["forward"], record.step_ms["total"]
    return f"{1 - forward / total:.0%}" if forward and total else ""


def _memory(records: Sequence[Record]) -> list[str]:
    peaks = {record.mode: record.peak_rss_mb for record in records}
    names = {"stock": "stock vLLM", "zipar": "ZipAR"}
    cells = [f"{names[mode]} {peak:.0f} MB" for mode, peak in peaks.items()]
    return [f"Peak memory, all processes of an engine: {', '.join(cells)}."]
