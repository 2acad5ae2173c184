"""ZipAR beside stock vLLM: latency, throughput, memory and where a step's time goes.

``python -m benchmarks.latency`` runs each engine in a process of its own, over the embedded
model or a random one of a published size, one after the other and again, and writes
``benchmarks/results/latency.json`` and ``latency.md``. Everything is greedy, so both engines make
the same number of tokens; only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.latency_report import (
    Circumstances,
    Record,
    Run,
    Setting,
    make_record,
    make_tables,
    merge_rounds,
)
from benchmarks.machine import INSTRUCTIONS, Bystanders, environment_for, machine_name
from benchmarks.random_models import LLAMAGEN_B, named_model
from benchmarks.report import RESULTS, command_line, write_results
from benchmarks.tether import run_tethered
from server.cli.environment import set_environment
from zipar_vllm.cpu import has_bfloat16
from zipar_vllm.models import DEMO_PATH

ROOT = Path(__file__).resolve().parent.parent
MODES = ("stock", "zipar")
PROMPT = "red apple"
GUIDANCE_SCALE = 2.0
ENGINE = {
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 1024,
    "enable_prefix_caching": False,
    "disable_log_stats": True,
}


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


def stock_engine(path: Path, **arguments: Any) -> Callable[[Setting], Run]:
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
    llm = LLM(str(path), **ENGINE | arguments)

    def run(setting: Setting) -> Run:
        start = time.perf_counter()
        outputs = llm.generate([prompt] * setting.requests, sampling, use_tqdm=False)
        seconds = time.perf_counter() - start
        if any(len(output.outputs[0].token_ids) != grid.num_positions for output in outputs):
            raise RuntimeError("stock vLLM returned too few tokens")
        return Run(seconds, grid.num_positions)

    return run


def zipar_engine(path: Path, **arguments: Any) -> Callable[[Setting], Run]:
    """Our engine, as the server starts it."""
    from zipar_vllm import ImageLLM

    llm = ImageLLM(path, **ENGINE | arguments)
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
    mode: str,
    options: argparse.Namespace,
    settings: Sequence[Setting],
    path: Path,
    **arguments: Any,
) -> list[Record]:
    """Start the engine and measure each setting, warmed up; to be run in a fresh process."""
    engine = {"stock": stock_engine, "zipar": zipar_engine}[mode]
    run = engine(path, dtype=options.dtype, enforce_eager=options.eager, **arguments)
    bystanders = Bystanders()
    runs: dict[Setting, list[Run]] = {}
    for number, setting in enumerate(settings, 1):
        run(setting)
        runs[setting] = [run(setting) for _ in range(options.repeats)]
        best = min(done.seconds for done in runs[setting])
        say(f"  {mode} {number}/{len(settings)}: {describe(setting)}: {best:.2f} s")
    circumstances = Circumstances(
        machine=machine_name(options.instructions),
        dtype=options.dtype,
        command=options.command,
        busy_cores=bystanders.busy_cores(),
        peak_rss_mb=round(peak_rss_mb(), 1),
    )
    return [make_record(mode, setting, runs[setting], circumstances) for setting in settings]


def settings_of(mode: str, windows: Sequence[int], requests: Sequence[int]) -> list[Setting]:
    """What an engine is measured at; guidance only where the engine has it."""
    if mode == "stock":
        return [Setting(None, n, False) for n in requests]
    plain = [Setting(w, n, False) for w in windows for n in requests]
    ends = sorted({min(requests), max(requests)})
    return plain + [Setting(w, n, True) for w in windows for n in ends]


def run_engine(mode: str, options: argparse.Namespace) -> list[Record]:
    """Measure one engine in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.latency", "--engine", mode, "--json"]
    command += ["--repeats", str(options.repeats), "--command", options.command]
    command += ["--windows", *map(str, options.windows)]
    command += ["--requests", *map(str, options.requests)]
    command += ["--dtype", options.dtype, "--model", str(options.model)]
    if options.instructions:
        command += ["--instructions", options.instructions]
    command += ["--eager"] * options.eager
    environment = environment_for(options.instructions)
    if mode == "stock":
        environment["VLLM_PLUGINS"] = ""
    return read_records(run_tethered(command, ROOT, environment))


def read_records(output: str) -> list[Record]:
    """The records among whatever vLLM logged."""
    lines = [line for line in output.splitlines() if line.startswith('[{"mode"')]
    if not lines:
        raise RuntimeError(f"the engine printed no records: {output[-2000:]}")
    return [Record(**raw) for raw in json.loads(lines[-1])]


def describe(setting: Setting) -> str:
    words = [f"window {setting.window}"] if setting.window else []
    words += [f"{setting.requests} at a time"]
    return ", ".join([*words, *["guidance"] * setting.guidance])


def say(text: str) -> None:
    """Tell whoever waits how far it is."""
    print(text, file=sys.stderr, flush=True)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument(
        "--model",
        type=Path,
        default=DEMO_PATH,
        help=f"a folder, or {LLAMAGEN_B}: random, of that size (default: the embedded model)",
    )
    parser.add_argument("--engine", choices=MODES, help="measure this one, here")
    parser.add_argument("--json", action="store_true", help="print records as one line of JSON")
    parser.add_argument("--windows", type=int, nargs="+", default=[2, 4, 8, 24])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=5, help="per setting and round")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each engine")
    parser.add_argument("--quick", action="store_true", help="windows 4 and 24, one request, once")
    parser.add_argument("--dtype", help="default: what zipar serve would take on this processor")
    parser.add_argument("--instructions", choices=INSTRUCTIONS, help="use no better ones")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--name", default="latency", help="of the result files")
    parser.add_argument("--command", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.quick:
        options.windows, options.requests, options.repeats, options.rounds = [4, 24], [1], 1, 1
    if options.dtype is None:
        is_native = has_bfloat16() and options.instructions is None
        options.dtype = "bfloat16" if is_native else "float32"
    if options.command is None:
        options.command = command_line("benchmarks.latency", words)
    return options


def main() -> None:
    options = parse()
    if options.engine:
        if options.engine == "zipar":
            set_environment()
        settings = settings_of(options.engine, options.windows, options.requests)
        # 16 guided images of the embedded model, or of one of LlamaGen-B's size
        memory = 512 << 20 if options.model == DEMO_PATH else 2 << 30
        path = options.model
        records = measure(options.engine, options, settings, path, kv_cache_memory_bytes=memory)
        if options.json:
            print(json.dumps([asdict(record) for record in records]))
        else:
            print(make_tables(records))
        return
    with named_model(options.model) as options.model:
        merged = merge_rounds(run_rounds(options))
    write_results(
        options.output, options.name, [asdict(record) for record in merged], make_tables(merged)
    )
    print(make_tables(merged))


def run_rounds(options: argparse.Namespace) -> list[Record]:
    """Both engines, one after the other, as often as there are rounds."""
    records = []
    for number in range(options.rounds):
        # First one first, then the other, so that neither always has the warmer machine.
        for mode in MODES[:: 1 if number % 2 == 0 else -1]:
            say(f"round {number + 1} of {options.rounds}: starting {mode}")
            records += run_engine(mode, options)
    return records


if __name__ == "__main__":
    main()
