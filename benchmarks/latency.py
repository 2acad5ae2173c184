"""ZipAR beside stock vLLM: latency, throughput, memory and where a step's time goes.

``python -m benchmarks.latency`` runs each engine in a process of its own, over the embedded
model, and writes ``benchmarks/results/latency.json`` and ``latency.md``. Everything is greedy, so
both engines make the same number of tokens; only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report import RESULTS, command_line, machine_name, markdown_table, write_results

PARTS = ("prepare", "forward", "sample", "overhead")
PROMPT = "red apple"
GUIDANCE_SCALE = 2.0
GUIDANCE_NOTE = "Two lanes per image. Stock vLLM has none: ratios are to the widest window."
ENGINE = {
    "dtype": "bfloat16",
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 1024,
    "kv_cache_memory_bytes": 512 << 20,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
}
ENGINE_SECONDS = 900


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
    command: str


@dataclass(frozen=True)
class Setting:
    window: int | None
    requests: int
    guidance: bool


@dataclass(frozen=True)
class Run:
    """One repeat: wall seconds, steps per image, and the worker's own counts, if it has any."""

    seconds: float
    steps: int
    times: Mapping[str, float] | None = None


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
    mode: str, setting: Setting, runs: Sequence[Run], machine: str, command: str
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
        peak_rss_mb=0.0,
        machine=machine,
        command=command,
    )


def make_tables(records: Sequence[Record]) -> str:
    """The records as Markdown: one section without guidance, one with it."""
    parts = ["# Latency and throughput", "", f"{records[0].machine}; `{records[0].command}`", ""]
    plain = [record for record in records if not record.guidance]
    guided = [record for record in records if record.guidance]
    parts += ["## Without guidance", "", *_table(plain)]
    if guided:
        parts += ["", "## With guidance", "", GUIDANCE_NOTE, ""]
        parts += _table(guided)
    parts += ["", "## One step at batch 1, milliseconds", "", *_split(records)]
    parts += ["", *_memory(records)]
    return "\n".join(parts) + "\n"


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
        if record.requests == 1:
            values = [record.step_ms[name] for name in names]
            cells = ["" if value is None else f"{value:.2f}" for value in values]
            rows.append([_name(record), "on" if record.guidance else "off", *cells])
    return markdown_table(["", "guidance", *names], rows)


def _memory(records: Sequence[Record]) -> list[str]:
    peaks = {record.mode: record.peak_rss_mb for record in records}
    names = {"stock": "stock vLLM", "zipar": "ZipAR"}
    cells = [f"{names[mode]} {peak:.0f} MB" for mode, peak in peaks.items()]
    return [f"Peak memory, all processes of an engine: {', '.join(cells)}."]


def peak_rss_mb() -> float:
    """Sum of the peaks of this process and its children (an upper bound: they share pages)."""
    import psutil

    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return total / 1024


def stock_engine(path: Path, eager: bool) -> Callable[[Setting], Run]:
    """Raster decoding of the same weights and token count by vLLM as it comes."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    from zipar_vllm.models.registry import load_image_model

    model = load_image_model(path)
    grid = next(iter(model.spec.grids.values()))
    prompt = TokensPrompt(prompt_token_ids=model.prompts(PROMPT, None, grid, False).conditional)
    sampling = SamplingParams(
        temperature=0.0, max_tokens=grid.num_positions, ignore_eos=True, detokenize=False
    )
    llm = LLM(str(path), **ENGINE, enforce_eager=eager)

    def run(setting: Setting) -> Run:
        start = time.perf_counter()
        outputs = llm.generate([prompt] * setting.requests, sampling, use_tqdm=False)
        seconds = time.perf_counter() - start
        if any(len(output.outputs[0].token_ids) != grid.num_positions for output in outputs):
            raise RuntimeError("stock vLLM returned too few tokens")
        return Run(seconds, grid.num_positions)

    return run


def zipar_engine(path: Path, eager: bool) -> Callable[[Setting], Run]:
    """Our engine, as the server starts it."""
    from zipar_vllm import ImageLLM

    llm = ImageLLM(path, **ENGINE, enforce_eager=eager)
    columns = next(iter(llm.model.spec.grids.values())).columns

    def run(setting: Setting) -> Run:
        images = llm.prepare(
            [PROMPT] * setting.requests,
            seed=0,
            window=setting.window or columns,
            guidance_scale=GUIDANCE_SCALE if setting.guidance else 1.0,
            temperature=0.0,
        )
        llm.llm.collective_rpc("step_times")
        start = time.perf_counter()
        decoded = llm.decode(images)
        seconds = time.perf_counter() - start
        return Run(seconds, decoded[0].steps, llm.llm.collective_rpc("step_times")[0])

    return run


def measure(
    mode: str, settings: Sequence[Setting], repeats: int, eager: bool, command: str
) -> list[Record]:
    """Start the engine, warm it up, and measure the settings; to be run in a fresh process."""
    from zipar_vllm.models import DEMO_PATH

    machine = machine_name()
    run = {"stock": stock_engine, "zipar": zipar_engine}[mode](DEMO_PATH, eager)
    records = []
    narrowest = min((s.window for s in settings if s.window), default=None)
    for setting in settings:
        if setting.window == narrowest:
            run(setting)  # warm-up: wider windows have no more inputs per step
        runs = [run(setting) for _ in range(repeats)]
        records.append(make_record(mode, setting, runs, machine, command))
        print(f"{mode} {setting}: {records[-1].latency_s_p50:.2f} s", file=sys.stderr, flush=True)
    peak = round(peak_rss_mb(), 1)
    return [Record(**asdict(record) | {"peak_rss_mb": peak}) for record in records]


def settings_of(mode: str, windows: Sequence[int], requests: Sequence[int]) -> list[Setting]:
    """What one engine is measured at; guidance only where the engine has it."""
    if mode == "stock":
        return [Setting(None, n, False) for n in requests]
    plain = [Setting(w, n, False) for w in windows for n in requests]
    ends = sorted({min(requests), max(requests)})
    return plain + [Setting(w, n, True) for w in windows for n in ends]


def run_engine(mode: str, arguments: argparse.Namespace) -> list[Record]:
    """Measure one engine in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.latency", "--engine", mode, "--json"]
    command += ["--repeats", str(arguments.repeats), "--command", arguments.command]
    command += ["--windows", *map(str, arguments.windows)]
    command += ["--requests", *map(str, arguments.requests)]
    command += ["--eager"] * arguments.eager
    environment = dict(os.environ)
    if mode == "stock":
        environment["VLLM_PLUGINS"] = ""
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=ENGINE_SECONDS,
        cwd=Path(__file__).resolve().parent.parent,
    )
    return [Record(**raw) for raw in _json_line(done.stdout)]


def _json_line(output: str) -> list[dict]:
    """The records among whatever vLLM logged."""
    lines = [line for line in output.splitlines() if line.startswith('[{"mode"')]
    if not lines:
        raise RuntimeError(f"the engine printed no records: {output[-2000:]}")
    return json.loads(lines[-1])


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--engine", choices=("stock", "zipar"), help="measure this one, here")
    parser.add_argument("--json", action="store_true", help="print records as one line of JSON")
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 4, 8, 24])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one repeat, window 4, 1 request")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--command", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.windows, arguments.requests, arguments.repeats = [4], [1], 1
    if arguments.command is None:
        arguments.command = command_line("benchmarks.latency", words)
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.engine:
        settings = settings_of(arguments.engine, arguments.windows, arguments.requests)
        records = measure(
            arguments.engine, settings, arguments.repeats, arguments.eager, arguments.command
        )
        if arguments.json:
            print(json.dumps([asdict(record) for record in records]))
        else:
            print(make_tables(records))
        return
    records = [record for mode in ("stock", "zipar") for record in run_engine(mode, arguments)]
    rows = [asdict(record) for record in records]
    write_results(arguments.output, "latency", rows, make_tables(records))
    print(make_tables(records))


if __name__ == "__main__":
    main()
