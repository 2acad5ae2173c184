"""Load tests: AIPerf against a server, over concurrency, window and streaming.

``make load`` puts AIPerf, which has an environment of its own, on PATH, starts a server with the
embedded model and writes ``load.json``, ``load.md`` and two plots into ``benchmarks/results``.
Window C, the grid's width, is raster order: one token a step, as any other engine decodes.

AIPerf has no metric for the first partial picture: its time to first token is for text only, and
its time to first byte sees the comment that keeps a waiting stream alive. The raw export of the
same run has the arrival of every event, so the time is taken from there.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import machine_name
from benchmarks.report import RESULTS, command_line, markdown_table, write_results
from benchmarks.serving import (
    DEMO_MODEL,
    Metrics,
    Model,
    Server,
    client_environment,
    running_server,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROMPTS = ("red apple", "house", "cat face", "sun", "pizza", "rocket", "flag of Japan", "owl")
PARTIAL_IMAGES = 3
"""Partial pictures a stream asks for: the most the API allows, so that the first comes early."""
WARM_UP_REQUESTS = 1
NICENESS = "15"
SETTLE_SECONDS = 10
RUN_SECONDS = 7200
EXPORT = "profile_export_aiperf.json"
RAW_EXPORT = "profile_export_raw.jsonl"


@dataclass(frozen=True)
class Setting:
    """One AIPerf run."""

    window: int
    streaming: bool
    concurrency: int
    requests: int


@dataclass(frozen=True)
class Record:
    """What one run measured.

    Latencies are in seconds and None where no request succeeded; the error rate and the goodput's
    share are fractions of all requests; ``steps`` is the mean of an image, by the server's count;
    ``images_finished`` is the server's count too, without the warm-up.
    """

    window: int
    order: str
    streaming: bool
    concurrency: int
    requests: int
    images_per_s: float
    latency_s_p50: float | None
    latency_s_p95: float | None
    latency_s_p99: float | None
    first_partial_s_p50: float | None
    first_partial_s_p95: float | None
    error_rate: float
    bound_s: float
    goodput_per_s: float
    goodput_share: float
    steps: float | None
    images_finished: int
    machine: str
    command: str
    aiperf: str


@dataclass(frozen=True)
class Target:
    """What requests go to, and what all of them have in common."""

    server: Server
    model: Model
    tokenizer: Path
    guidance_scale: float
    seed: int
    bound_ms: float


def settings_of(
    windows: Sequence[int], concurrency: Sequence[int], requests: int
) -> Iterator[Setting]:
    """All runs; never fewer than two requests for each that is in flight at a time."""
    for streaming in (False, True):
        for window in windows:
            for level in concurrency:
                yield Setting(window, streaming, level, max(requests, 2 * level))


def dataset(requests: int, seed: int) -> str:
    """The prompts as AIPerf reads them: each request has a seed of its own, the same every run."""
    lines = (
        {"text": PROMPTS[k % len(PROMPTS)], "extra": {"seed": seed + k}} for k in range(requests)
    )
    return "".join(json.dumps(line) + "\n" for line in lines)


def aiperf_command(target: Target, setting: Setting, data: Path, folder: Path) -> list[str]:
    """The command line of one run, whose files go into ``folder``."""
    extra: dict[str, Any] = {
        # key:value pairs cannot nest; a JSON object is merged into the body as it is.
        "zipar": {"window": setting.window},
        "guidance_scale": target.guidance_scale,
        "size": target.model.size,
    }
    if setting.streaming:
        extra["partial_images"] = PARTIAL_IMAGES
    command = ["aiperf", "profile", "--model", target.model.name, "--url", target.server.url]
    command += ["--endpoint-type", "image_generation"]
    command += ["--streaming"] if setting.streaming else []
    command += ["--concurrency", str(setting.concurrency)]
    command += ["--request-count", str(setting.requests)]
    command += ["--warmup-request-count", str(WARM_UP_REQUESTS)]
    command += ["--input-file", str(data), "--custom-dataset-type", "single_turn"]
    command += ["--dataset-sampling-strategy", "sequential"]
    command += ["--extra-inputs", json.dumps(extra)]
    command += ["--goodput", f"request_latency:{target.bound_ms:g}"]
    command += ["--tokenizer", str(target.tokenizer)]
    command += ["--artifact-dir", str(folder), "--export-level", "raw", "--ui", "none"]
    return [*command, "--no-server-metrics", "--no-gpu-telemetry"]


def first_partials(lines: Iterable[str]) -> list[float]:
    """Seconds from each measured request to its first partial picture, from a raw export."""
    seconds = []
    for line in lines:
        record = json.loads(line)
        if record["metadata"]["benchmark_phase"] != "profiling":
            continue
        for event in record.get("responses") or ():
            names = [p["value"] for p in event.get("packets", ()) if p["name"] == "event"]
            if "image_generation.partial_image" in names:
                seconds.append((event["perf_ns"] - record["start_perf_ns"]) / 1e9)
                break
    return seconds


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Linear interpolation between the closest values, as AIPerf does."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def make_record(
    export: Mapping[str, Any],
    partials: Sequence[float],
    setting: Setting,
    target: Target,
    steps: float | None,
    finished: int,
    machine: str,
    command: str,
) -> Record:
    """Read AIPerf's summary; what it leaves out, for want of a value, is None or 0 here."""

    def value(name: str, key: str = "avg") -> float | None:
        found = (export.get(name) or {}).get(key)
        return None if found is None else float(found)

    def seconds(key: str) -> float | None:
        found = value("request_latency", key)
        return None if found is None else round(found / 1e3, 4)

    def rounded(number: float | None) -> float | None:
        return None if number is None else round(number, 4)

    is_raster = setting.window == target.model.columns
    return Record(
        window=setting.window,
        order="raster" if is_raster else "zipar",
        streaming=setting.streaming,
        concurrency=setting.concurrency,
        requests=setting.requests,
        images_per_s=round(value("request_throughput") or 0.0, 4),
        latency_s_p50=seconds("p50"),
        latency_s_p95=seconds("p95"),
        latency_s_p99=seconds("p99"),
        first_partial_s_p50=rounded(percentile(partials, 50)),
        first_partial_s_p95=rounded(percentile(partials, 95)),
        error_rate=round((value("request_error_rate") or 0.0) / 100, 4),
        bound_s=target.bound_ms / 1e3,
        goodput_per_s=round(value("goodput") or 0.0, 4),
        goodput_share=round(value("good_request_fraction") or 0.0, 4),
        steps=None if steps is None else round(steps, 1),
        images_finished=finished,
        machine=machine,
        command=command,
        aiperf=str(export.get("aiperf_version", "")),
    )


def problems_of(record: Record) -> list[str]:
    """Where the server's books and AIPerf's differ, or requests failed."""
    name = f"{label(record)}, concurrency {record.concurrency}"
    name += ", streaming" if record.streaming else ""
    found = []
    if record.images_finished != record.requests:
        found.append(f"{name}: {record.requests} requests, {record.images_finished} images")
    if record.error_rate:
        found.append(f"{name}: {100 * record.error_rate:g} % of the requests failed")
    if record.streaming and record.first_partial_s_p50 is None:
        found.append(f"{name}: no partial picture came")
    return found


def measure(target: Target, setting: Setting, folder: Path, machine: str, command: str) -> Record:
    """Run AIPerf once and read what it and the server counted."""
    folder.mkdir(parents=True)
    data = folder / "prompts.jsonl"
    data.write_text(dataset(setting.requests, target.seed))
    before = target.server.metrics()
    done = subprocess.run(
        # Where both share a machine, the server comes first: it is what is measured.
        ["nice", "-n", NICENESS, *aiperf_command(target, setting, data, folder / "out")],
        env=client_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_SECONDS,
    )
    summary = folder / "out" / EXPORT
    if not summary.exists():
        raise RuntimeError(f"aiperf ended with {done.returncode}:\n{done.stdout[-4000:]}")
    expected = setting.requests + WARM_UP_REQUESTS
    after, finished = _settled(target.server, before, expected)
    images = after.total("zipar:image_steps_count") - before.total("zipar:image_steps_count")
    passes = after.total("zipar:image_steps_sum") - before.total("zipar:image_steps_sum")
    raw = folder / "out" / RAW_EXPORT
    with raw.open() as lines:
        partials = first_partials(lines) if setting.streaming else []
    return make_record(
        json.loads(summary.read_text()),
        partials,
        setting,
        target,
        passes / images if images else None,
        finished - WARM_UP_REQUESTS,
        machine,
        command,
    )


def _settled(server: Server, before: Metrics, expected: int) -> tuple[Metrics, int]:
    """Metrics once they have ``expected`` more images; a stream is counted after its last event."""
    name = "zipar:images_finished_total"
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        now = server.metrics()
        finished = round(now.total(name) - before.total(name))
        if finished >= expected or time.monotonic() > deadline:
            return now, finished
        time.sleep(0.2)


def label(record: Record) -> str:
    """The window, with what the widest one means."""
    return f"{record.window} (raster)" if record.order == "raster" else str(record.window)


def make_tables(records: Sequence[Record]) -> str:
    """The records as Markdown: answers in one piece, then streams."""
    first = records[0]
    lines = ["# Load", ""]
    lines += [f"{first.machine}; AIPerf {first.aiperf}; `{first.command}`", ""]
    lines += [
        "AIPerf runs on the same machine as the server, unless `--url` is given. Latency is of a "
        "whole request, in seconds; goodput counts the requests answered within "
        f"{first.bound_s:g} s. A ratio behind images/s is to raster order.",
        "",
    ]
    for streaming in (False, True):
        rows = [record for record in records if record.streaming == streaming]
        if rows:
            lines += ["## Streaming" if streaming else "## Not streaming", ""]
            lines += [*_table(rows, streaming), ""]
    return "\n".join(lines)


def _table(records: Sequence[Record], streaming: bool) -> list[str]:
    head = ["window", "concurrency", "requests", "steps", "images/s", "p50", "p95", "p99"]
    head += ["first partial p50", "p95"] if streaming else []
    head += ["errors", "goodput, images/s"]
    base = {r.concurrency: r for r in records if r.order == "raster"}
    rows = []
    for record in records:
        rate = f"{record.images_per_s:.3f}"
        raster = base.get(record.concurrency)
        if raster and raster is not record and raster.images_per_s:
            rate += f" ({record.images_per_s / raster.images_per_s:.2f}x)"
        cells = [label(record), str(record.concurrency), str(record.requests)]
        cells += ["" if record.steps is None else f"{record.steps:g}", rate]
        times = [record.latency_s_p50, record.latency_s_p95, record.latency_s_p99]
        times += [record.first_partial_s_p50, record.first_partial_s_p95] if streaming else []
        cells += ["" if value is None else f"{value:.2f}" for value in times]
        cells.append(f"{100 * record.error_rate:g} %")
        cells.append(f"{record.goodput_per_s:.3f} ({100 * record.goodput_share:.0f} %)")
        rows.append(cells)
    return markdown_table(head, rows)


def draw(records: Sequence[Record], name: str) -> Figure:
    """Latency or throughput over concurrency, a line for each window; needs the extra `bench`."""
    from matplotlib.figure import Figure

    modes = [mode for mode in (False, True) if any(r.streaming == mode for r in records)]
    levels = sorted({record.concurrency for record in records})
    figure = Figure(figsize=(4.5 * len(modes) + 2.5, 4), layout="constrained")
    axes = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for axis, mode in zip(axes, modes, strict=True):
        for k, window in enumerate(sorted({record.window for record in records})):
            rows = [r for r in records if (r.streaming, r.window) == (mode, window)]
            rows.sort(key=lambda r: r.concurrency)
            if not rows:
                continue
            x = [r.concurrency for r in rows]
            text, color = f"window {label(rows[0])}", f"C{k}"
            if name == "latency":
                p50 = [math.nan if r.latency_s_p50 is None else r.latency_s_p50 for r in rows]
                p95 = [math.nan if r.latency_s_p95 is None else r.latency_s_p95 for r in rows]
                axis.plot(x, p50, "o-", color=color, label=f"{text}, p50")
                axis.plot(x, p95, "o:", color=color, label=f"{text}, p95")
            else:
                axis.plot(x, [r.images_per_s for r in rows], "o-", color=color, label=text)
        axis.set_xscale("log", base=2)
        axis.set_xticks(levels, [str(level) for level in levels])
        axis.set_xlabel("requests in flight")
        axis.set_title("streaming" if mode else "not streaming")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("latency, s" if name == "latency" else "images/s")
    if name == "latency":
        axes[0].set_yscale("log")
    else:
        axes[0].set_ylim(bottom=0)  # at the end: it stops the axis from growing with its lines
    # An axis lacks the windows that were not measured its way.
    drawn: dict[str, Any] = {}
    for axis in axes:
        handles, texts = axis.get_legend_handles_labels()
        drawn |= dict(zip(texts, handles, strict=True))
    figure.legend(drawn.values(), drawn.keys(), loc="outside right upper", fontsize="small")
    return figure


def plot(records: Sequence[Record], folder: Path) -> None:
    """Write both plots."""
    for name in ("latency", "throughput"):
        draw(records, name).savefig(folder / f"load_{name}.png", dpi=120)


def write(records: Sequence[Record], folder: Path) -> None:
    """Write the list, the tables and the plots."""
    write_results(folder, "load", [asdict(record) for record in records], make_tables(records))
    plot(records, folder)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--url", help="a running server that nobody else uses; default: start one")
    parser.add_argument("--size", help="default: the model's first")
    parser.add_argument(
        "--windows", type=int, nargs="+", help="default: 2, 4, 8 and the grid's width"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", help="default: 1, 4, 16, 64")
    parser.add_argument(
        "--requests", type=int, help="a run, but at least twice the concurrency; default: 64"
    )
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first request, then one more")
    parser.add_argument("--bound", type=float, default=5000.0, help="goodput's latency, ms")
    parser.add_argument("--tokenizer", type=Path, default=DEMO_MODEL, help="folder of a tokenizer")
    parser.add_argument("--quick", action="store_true", help="few, to see that it works")
    parser.add_argument("--artifacts", type=Path, help="keep AIPerf's own files in this folder")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    arguments = parser.parse_args(words)
    arguments.concurrency = arguments.concurrency or ([1, 4] if arguments.quick else [1, 4, 16, 64])
    arguments.requests = arguments.requests or (4 if arguments.quick else 64)
    arguments.command = command_line("benchmarks.load", words)
    return arguments


def windows_of(arguments: argparse.Namespace, columns: int) -> list[int]:
    """Asked for or usual, none twice, and none wider than the grid."""
    usual = [4, columns] if arguments.quick else [2, 4, 8, columns]
    return sorted({window for window in arguments.windows or usual if window <= columns})


@contextmanager
def server_of(url: str | None) -> Iterator[Server]:
    if url:
        yield Server(url.rstrip("/"))
    else:
        with running_server() as server:
            yield server


def main() -> None:
    arguments = parse()
    if shutil.which("aiperf") is None:
        sys.exit("needed: aiperf on PATH; `make load` installs it")
    records: list[Record] = []
    with server_of(arguments.url) as server, tempfile.TemporaryDirectory() as temporary:
        model = server.model(arguments.size)
        target = Target(
            server=server,
            model=model,
            tokenizer=arguments.tokenizer.resolve(),
            guidance_scale=arguments.guidance_scale,
            seed=arguments.seed,
            bound_ms=arguments.bound,
        )
        windows = windows_of(arguments, model.columns)
        folder = arguments.artifacts or Path(temporary)
        for setting in settings_of(windows, arguments.concurrency, arguments.requests):
            mode = "stream" if setting.streaming else "whole"
            place = folder / f"{mode}-window{setting.window}-at{setting.concurrency}"
            record = measure(target, setting, place, machine_name(), arguments.command)
            records.append(record)
            print(f"{setting}: {record.images_per_s:.3f} images/s", file=sys.stderr, flush=True)
            write(records, arguments.output)  # hours may follow that must not lose this
    print(make_tables(records))
    problems = [problem for record in records for problem in problems_of(record)]
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
