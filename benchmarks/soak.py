"""A soak test: mixed requests for 20 minutes, of which some leave and some come in bursts.

``make soak`` puts Locust, which has an environment of its own, on PATH, and starts a server that
takes few images at a time. It ends with 1 unless every request was answered, refused with
Retry-After or left by the client, the engine is empty and its KV cache free, memory did not grow,
and pictures drawn with fixed seeds before and after are the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_name
from benchmarks.report import RESULTS, command_line, markdown_table, write_results

PATH = "/v1/images/generations"
PROMPTS = ("red apple", "house", "cat face", "sun", "pizza", "rocket", "owl", "a house, nearby")
GUIDANCE = (1.0, 2.0, 5.0)
SIZES = {"192x192": 24, "192x96": 24, "96x192": 12}
"""Sizes and their columns. The embedded model was trained on the first and draws nonsense in the
others, but takes as many steps and as much memory as a model that can."""
TOKEN_PIXELS = 8
ADAPTIVE_SHARE = 0.25
LEAVING_SHARE = 0.1
LEAVING_SECONDS = (0.05, 1.5)
FIXED_SEED = 20
STOP_SECONDS = 300
"""How long the last requests may take when the time is over."""
IDLE_SECONDS = 120
SAMPLE_SECONDS = 5.0
WARM_UP_SHARE = 0.25
MAX_WARM_UP_SECONDS = 300.0
MAX_GROWTH = 0.05
"""Largest share by which memory may grow between the first and the last tenth after warm-up."""

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Order:
    """A request, and the seconds after which its client leaves, if it is one that does."""

    body: dict[str, Any]
    leaves_after_s: float | None = None

    @property
    def kind(self) -> str:
        """What Locust lists it under."""
        mode = "stream" if self.body.get("stream") else "whole"
        return f"{mode}, {self.body.get('size', '')}, window {self.body['zipar']['window']}"


@dataclass(frozen=True)
class Outcome:
    """What became of a request: drawn, refused, left, or lost and how; seconds are its own."""

    kind: str
    detail: str
    status: int
    seconds: float
    order: Order
    retry_after_s: float = 0.0

    def taking(self, seconds: float) -> Outcome:
        return replace(self, seconds=round(seconds, 4))


@dataclass(frozen=True)
class Check:
    """Something that has to hold, whether it did, and what was seen."""

    name: str
    holds: bool
    seen: str


@dataclass(frozen=True)
class Memory:
    """Resident memory of the server's processes after warm-up.

    ``first_mb`` and ``last_mb`` are medians of the first and last tenth of the samples, in MiB
    (pages that processes share count in each); the slope is of a straight line through all of them.
    """

    warm_up_s: float
    first_mb: float
    last_mb: float
    slope_mb_per_hour: float

    @property
    def is_flat(self) -> bool:
        return self.last_mb <= (1 + MAX_GROWTH) * self.first_mb


@dataclass(frozen=True)
class Report:
    """Everything a run is judged by; seconds are of the load alone."""

    machine: str
    command: str
    seconds: float
    counts: Mapping[str, int]
    drawn_s_p50: float | None
    drawn_s_p95: float | None
    server: Mapping[str, float]
    memory: Memory
    checks: Sequence[Check]
    lost: Sequence[str]
    samples: Sequence[tuple[float, float]] = field(default_factory=list)


def draw_order(draw: random.Random, windows: Sequence[int], sizes: Mapping[str, int]) -> Order:
    """A request of the mix; ``sizes`` with their columns."""
    size = draw.choice(list(sizes))
    window = min(draw.choice(windows), sizes[size])
    body: dict[str, Any] = {
        "prompt": draw.choice(PROMPTS),
        "seed": draw.randrange(2**31),
        "guidance_scale": draw.choice(GUIDANCE),
        "temperature": 1.0,
        "size": size,
        "zipar": {"window": window, "adaptive": draw.random() < ADAPTIVE_SHARE},
    }
    if draw.random() < 0.5:
        body |= {"stream": True, "partial_images": draw.randrange(4)}
    leaves = draw.random() < LEAVING_SHARE
    return Order(body, round(draw.uniform(*LEAVING_SECONDS), 3) if leaves else None)


def judge(status: int, headers: Mapping[str, str], text: str, is_stream: bool) -> tuple[str, str]:
    """Drawn, refused, or lost and how."""
    if status == 503:
        if retry_after(headers) < 1:
            return "lost", "503 without Retry-After"
        return "refused", ""
    if status != 200:
        return "lost", f"status {status}: {text[:200]}"
    try:
        encoded = _last_picture(text) if is_stream else json.loads(text)["data"][0]["b64_json"]
        file = base64.b64decode(encoded, validate=True)
    except (ValueError, LookupError, TypeError) as error:
        return "lost", f"no picture: {error!r}"
    if not (file.startswith(_PNG_START) and file.endswith(_PNG_END)):
        return "lost", "not a whole PNG file"
    return "drawn", ""


def _last_picture(text: str) -> str:
    """The picture of a stream's last event, which has to be the whole one."""
    lines = [line for line in text.splitlines() if line.startswith("data: ")]
    if not lines:
        raise ValueError("a stream without events")
    event = json.loads(lines[-1].removeprefix("data: "))
    if event["type"] != "image_generation.completed":
        raise ValueError(f"a stream that ends with {event['type']}")
    return str(event["b64_json"])


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds to wait; 0 where the answer does not tell."""
    value = headers.get("Retry-After") or headers.get("retry-after") or ""
    return float(value) if value.isdecimal() else 0.0


def read_outcomes(lines: Iterable[str]) -> list[Outcome]:
    """The file the users wrote."""
    raw = [json.loads(line) for line in lines]
    return [Outcome(**one | {"order": Order(**one["order"])}) for one in raw]


def count(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many requests ended how, and how many were of each kind."""
    kinds = Counter(outcome.kind for outcome in outcomes)
    streams = sum(bool(outcome.order.body.get("stream")) for outcome in outcomes)
    names = ("drawn", "refused", "left", "lost")
    return {"requests": len(outcomes), "streaming": streams, **{n: kinds[n] for n in names}}


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """Of the straight line with the least squares, in y's unit by x's; 0 for a single place."""
    if len({x for x, _ in samples}) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*samples, strict=True)).slope


def memory_of(samples: Sequence[tuple[float, float]]) -> Memory:
    """Sum up samples of seconds and MiB; what the first quarter allocates is warm-up."""
    warm_up = min(MAX_WARM_UP_SECONDS, WARM_UP_SHARE * samples[-1][0])
    settled = [sample for sample in samples if sample[0] >= warm_up]
    tenth = max(1, len(settled) // 10)
    return Memory(
        warm_up_s=round(warm_up, 1),
        first_mb=round(statistics.median(mb for _, mb in settled[:tenth]), 1),
        last_mb=round(statistics.median(mb for _, mb in settled[-tenth:]), 1),
        slope_mb_per_hour=round(3600 * slope(settled), 1),
    )


def checks_of(
    counts: Mapping[str, int],
    books: Mapping[str, float],
    idle: Mapping[str, float],
    memory: Memory,
    before: Mapping[str, str],
    after: Mapping[str, str],
    exit_code: int,
) -> list[Check]:
    """Judge a run.

    Args:
        counts: As :func:`count` gives them.
        books: What the server counted under load, by the names :func:`main` gives it.
        idle: Gauges at the end, all of which have to be 0.
        memory: Of the server's processes.
        before: Digests of fixed pictures by name.
        after: The same, when the load was over.
        exit_code: How the server ended.
    """
    lost, drawn, refused = counts["lost"], counts["drawn"], counts["refused"]
    busy = {name: value for name, value in idle.items() if value}
    differ = [name for name, digest in before.items() if after.get(name) != digest]
    # Some that left had their answer on its way: the server may have counted more than clients.
    agree = books["finished"] >= drawn and books["rejected"] >= refused and not books["failed"]
    change = f"{memory.first_mb:.0f} to {memory.last_mb:.0f} MiB after {memory.warm_up_s:.0f} s"
    return [
        Check("no request was lost", drawn > 0 and lost == 0, f"{lost} of {counts['requests']}"),
        Check("bursts were refused with Retry-After", refused > 0, f"{refused} times 503"),
        Check("clients left midway", counts["left"] > 0, f"{counts['left']} times"),
        Check("the server's books agree", agree, ", ".join(f"{k} {v:g}" for k, v in books.items())),
        Check(
            "nothing runs or waits, all KV blocks are free",
            not busy,
            ", ".join(f"{name} {value:g}" for name, value in busy.items()) or "all gauges 0",
        ),
        Check(
            "memory is flat", memory.is_flat, f"{change}, {memory.slope_mb_per_hour:+.0f} MiB/hour"
        ),
        Check(
            "the same bytes before and after",
            bool(before) and not differ,
            f"differs: {'; '.join(differ)}" if differ else f"{len(before)} pictures",
        ),
        Check("the server ended when asked to", exit_code == 0, f"exit code {exit_code}"),
    ]


def make_table(report: Report) -> str:
    """The report as Markdown."""
    lines = ["# Soak", "", f"{report.machine}; `{report.command}`", ""]
    lines += [
        f"{report.seconds / 60:.1f} minutes under load; "
        + ", ".join(f"{name} {number}" for name, number in report.counts.items())
        + ".",
        "",
    ]
    if report.drawn_s_p50 is not None and report.drawn_s_p95 is not None:
        times = f"{report.drawn_s_p50:.2f} s (p50), {report.drawn_s_p95:.2f} s (p95)"
        lines += [f"A drawn picture took {times}.", ""]
    lines += markdown_table(
        ["", "holds", "seen"],
        [[check.name, "yes" if check.holds else "**no**", check.seen] for check in report.checks],
    )
    if report.lost:
        lines += ["", "Lost:", "", *(f"- {text}" for text in report.lost)]
    return "\n".join(lines) + "\n"


def fixed_bodies(windows: Sequence[int], sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Requests whose pictures have to stay the same, by name."""
    body = {"prompt": PROMPTS[0], "seed": FIXED_SEED, "temperature": 1.0, "guidance_scale": 2.0}
    bodies = {}
    for size, columns in sizes.items():
        for window in [window for window in windows if window <= columns]:
            name = f"{size}, window {window}"
            bodies[name] = {**body, "size": size, "zipar": {"window": window}}
        name = f"{size}, window 1 or more"
        bodies[name] = {**body, "size": size, "zipar": {"window": 1, "adaptive": True}}
    return bodies


def add_sizes(folder: Path, sizes: Mapping[str, int]) -> Path:
    """The embedded model with more sizes, in ``folder``."""
    from benchmarks.serving import DEMO_MODEL

    for entry in DEMO_MODEL.iterdir():
        (folder / entry.name).symlink_to(entry)
    facts = json.loads((DEMO_MODEL / "image_model.json").read_text())
    facts["grids"] = [
        {"size": size, "rows": int(size.split("x")[1]) // TOKEN_PIXELS, "columns": columns}
        for size, columns in sizes.items()
    ]
    (folder / "image_model.json").unlink()
    (folder / "image_model.json").write_text(json.dumps(facts))
    return folder


def digest(answer: Mapping[str, Any]) -> str:
    """SHA-256 of an answer's picture."""
    return hashlib.sha256(base64.b64decode(answer["data"][0]["b64_json"])).hexdigest()


class MemorySampler(threading.Thread):
    """Adds up a process tree's resident memory every few seconds, until it is told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._stopped = threading.Event()
        self.samples: list[tuple[float, float]] = []

    def run(self) -> None:
        start = time.monotonic()
        while True:
            self.samples.append((round(time.monotonic() - start, 1), round(self._sum(), 1)))
            if self._stopped.wait(SAMPLE_SECONDS):
                return

    def _sum(self) -> float:
        """MiB now."""
        import psutil

        total = 0
        process = psutil.Process(self._pid)
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total / 2**20

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def locust_command(arguments: argparse.Namespace, url: str, windows: Sequence[int]) -> list[str]:
    """The load; ``outcomes`` is where the users write."""
    command = ["locust", "-f", str(Path(__file__).with_name("soak_users.py")), "--headless"]
    command += ["--host", url, "--users", str(arguments.users + 1)]  # and the crowd
    command += ["--spawn-rate", str(arguments.users + 1), "--only-summary"]
    command += ["--run-time", f"{round(60 * arguments.minutes)}s"]
    command += ["--stop-timeout", str(STOP_SECONDS), "--exit-code-on-error", "0"]
    command += ["--outcomes", str(arguments.outcomes), "--draw-seed", str(arguments.seed)]
    command += ["--draw-windows", *map(str, windows), "--draw-sizes", json.dumps(SIZES)]
    command += ["--burst-size", str(2 * arguments.max_active_images)]
    return [*command, "--burst-seconds", f"{arguments.burst_seconds:g}"]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, help="of load; default: 20")
    parser.add_argument("--users", type=int, default=6, help="that always have a request each")
    parser.add_argument("--max-active-images", type=int, default=12, help="the server's limit")
    parser.add_argument("--burst-seconds", type=float, help="between bursts; default: 30")
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 4, 8, 24])
    parser.add_argument("--seed", type=int, default=0, help="of the mix")
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it works")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    arguments = parser.parse_args(words)
    arguments.minutes = arguments.minutes or (1.0 if arguments.quick else 20.0)
    arguments.burst_seconds = arguments.burst_seconds or (10.0 if arguments.quick else 30.0)
    arguments.command = command_line("benchmarks.soak", words)
    return arguments


def soak(arguments: argparse.Namespace) -> Report:
    """Start a server, load it, and see what is left."""
    # Locust's users import this module in an environment that has no prometheus_client of ours.
    from benchmarks.load import percentile
    from benchmarks.serving import client_environment, running_server
    from server.cli.serve import DEMO_KV_CACHE_BYTES

    windows = sorted(window for window in set(arguments.windows) if window <= max(SIZES.values()))
    limits = ["--max-active-images", str(arguments.max_active_images)]
    limits += ["--kv-cache-memory-bytes", str(DEMO_KV_CACHE_BYTES)]
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(*limits, model=add_sizes(Path(folder), SIZES)) as server,
    ):
        assert server.process is not None
        fixed = fixed_bodies(windows, SIZES)
        before = {name: digest(server.draw(body)) for name, body in fixed.items()}
        first = server.metrics()
        sampler = MemorySampler(server.process.pid)
        sampler.start()
        start = time.monotonic()
        done = subprocess.run(
            locust_command(arguments, server.url, windows),
            env=client_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60 * arguments.minutes + STOP_SECONDS + 300,
        )
        seconds = time.monotonic() - start
        sampler.stop()
        if done.returncode:
            raise RuntimeError(f"locust ended with {done.returncode}:\n{done.stdout[-4000:]}")
        idle = wait_until_idle(server)
        last = server.metrics()
        after = {name: digest(server.draw(body)) for name, body in fixed.items()}
        exit_code = server.stop()

    def grown(name: str, **labels: str) -> float:
        return last.total(name, **labels) - first.total(name, **labels)

    abandoned = grown("zipar:images_failed_total", reason="abandoned")
    books = {
        "accepted": grown("zipar:images_by_window_total"),
        "finished": grown("zipar:images_finished_total"),
        "abandoned": abandoned,
        "failed": grown("zipar:images_failed_total") - abandoned,
        "rejected": grown("zipar:requests_rejected_total"),
    }
    with arguments.outcomes.open() as lines:
        outcomes = read_outcomes(lines)
    counts = count(outcomes)
    memory = memory_of(sampler.samples)
    drawn = [outcome.seconds for outcome in outcomes if outcome.kind == "drawn"]
    return Report(
        machine=machine_name(),
        command=arguments.command,
        seconds=round(seconds, 1),
        counts=counts,
        drawn_s_p50=percentile(drawn, 50),
        drawn_s_p95=percentile(drawn, 95),
        server=books,
        memory=memory,
        checks=checks_of(counts, books, idle, memory, before, after, exit_code),
        lost=[f"{o.order.kind}: {o.detail}" for o in outcomes if o.kind == "lost"][:20],
        samples=sampler.samples,
    )


def wait_until_idle(server: Any) -> dict[str, float]:
    """Gauges once all of them are 0, or as they are when that takes too long."""
    names = (
        "vllm:kv_cache_usage_perc",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "zipar:images_active",
    )
    deadline = time.monotonic() + IDLE_SECONDS
    while True:
        now = server.metrics()
        gauges = {name: now.total(name) for name in names}
        if not any(gauges.values()) or time.monotonic() > deadline:
            return gauges
        time.sleep(1)


def main() -> None:
    arguments = parse()
    if shutil.which("locust") is None:
        sys.exit("needed: locust on PATH; `make soak` installs it")
    with tempfile.TemporaryDirectory() as folder:
        arguments.outcomes = Path(folder) / "outcomes.jsonl"
        report = soak(arguments)
    write_results(arguments.output, "soak", asdict(report), make_table(report))
    print(make_table(report))
    if not all(check.holds for check in report.checks):
        sys.exit(1)


if __name__ == "__main__":
    main()
