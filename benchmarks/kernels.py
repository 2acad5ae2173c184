"""Time the attention kernels alone: microseconds per layer and step, amid a picture.

    python -m benchmarks.kernels

The shapes are the embedded model's, or those given; every image is half decoded under the window,
so that its rows have holes. Writes ``benchmarks/results/kernels.json`` and ``kernels.md``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import machine_name
from benchmarks.report import RESULTS, command_line, markdown_table, write_results
from zipar_vllm.attention import cpu_attention
from zipar_vllm.attention.interface import AttentionInputs, AttentionKernel
from zipar_vllm.attention.torch_attention import TorchAttention
from zipar_vllm.core.grid import Grid
from zipar_vllm.core.visibility import UNWRITTEN
from zipar_vllm.decoding.fixed_window import fixed_window

BLOCK_SIZE = 32
PROMPT = 8


@dataclass(frozen=True)
class Record:
    """Medians of one setting; ``prepare_us`` is spent once per step, ``run_us`` in every layer."""

    kernel: str
    dtype: str
    window: int
    images: int
    inputs: int
    prepare_us: float
    run_us: float
    machine: str
    command: str


def half_decoded(grid: Grid, window: int, images: int) -> AttentionInputs:
    """A step amid ``images`` pictures; all steps before it are written."""
    policy = fixed_window(grid, window)
    middle = policy.num_steps // 2 + 1  # between two rows of raster order
    blocks = -(-(PROMPT + grid.num_positions) // BLOCK_SIZE)
    orders = torch.full((images, blocks * BLOCK_SIZE), UNWRITTEN, dtype=torch.int32)
    orders[:, :PROMPT] = 0
    for step in map(policy.step, range(1, middle + 1)):
        orders[:, PROMPT + step.positions] = torch.from_numpy(step.orders)
    now = policy.step(middle)
    count = now.num_inputs
    positions = torch.from_numpy(np.tile(PROMPT + now.positions, images))
    table = torch.randperm(images * blocks).view(images, blocks)
    lanes = torch.arange(images).repeat_interleave(count)
    return AttentionInputs(
        positions=positions,
        limits=torch.full((images * count,), middle, dtype=torch.int32),
        slot_mapping=table[lanes, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE,
        lanes=np.arange(images),
        lane_starts=np.arange(images + 1) * count,
        last_positions=np.full(images, int(positions.max())),
        num_decoding=images,
        orders=orders,
        block_table=table,
        block_size=BLOCK_SIZE,
    )


def microseconds(run: object, repeats: int) -> float:
    """Median of some calls, after a few that warm up."""
    assert callable(run)
    times = []
    for index in range(repeats + 5):
        start = time.perf_counter()
        run()
        if index >= 5:
            times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e6, 1)


def measure(
    name: str,
    kernel: AttentionKernel,
    dtype: torch.dtype,
    window: int,
    images: int,
    options: argparse.Namespace,
) -> Record:
    torch.manual_seed(0)
    step = half_decoded(Grid(options.rows, options.columns, True), window, images)
    inputs, size = len(step.positions), options.head_size
    query = torch.randn(inputs, options.heads, size).to(dtype)
    key, value = (torch.randn(inputs, options.kv_heads, size).to(dtype) for _ in range(2))
    cache = torch.randn(step.block_table.numel(), options.kv_heads, BLOCK_SIZE, 2 * size).to(dtype)
    output, metadata = torch.empty_like(query), kernel.prepare(step)
    scale = size**-0.5
    return Record(
        kernel=name,
        dtype=str(dtype).removeprefix("torch."),
        window=window,
        images=images,
        inputs=inputs,
        prepare_us=microseconds(lambda: kernel.prepare(step), options.repeats),
        run_us=microseconds(
            lambda: kernel.run(query, key, value, cache, metadata, scale, output), options.repeats
        ),
        machine=machine_name(),
        command=command_line("benchmarks.kernels"),
    )


def kernels_for(dtype: torch.dtype, options: argparse.Namespace) -> dict[str, AttentionKernel]:
    found: dict[str, AttentionKernel] = {}
    if cpu_attention.supports(dtype, options.head_size, BLOCK_SIZE):
        library = cpu_attention.load_library()
        assert library is not None
        found["cpu"] = cpu_attention.CPUAttention(library)
    found["torch"] = TorchAttention(options.heads // options.kv_heads, dtype)
    return found


def make_table(records: list[Record]) -> str:
    head = ["kernel", "dtype", "window", "images", "inputs", "prepare, us", "run, us"]
    rows = [
        [r.kernel, r.dtype, *map(str, (r.window, r.images, r.inputs, r.prepare_us, r.run_us))]
        for r in records
    ]
    first = records[0]
    title = ["# Attention kernels", "", f"{first.machine}; `{first.command}`", ""]
    return "\n".join([*title, *markdown_table(head, rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--columns", type=int, default=24)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 24])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    records = []
    for dtype in (getattr(torch, name) for name in options.dtypes):
        for name, kernel in kernels_for(dtype, options).items():
            for window in options.windows:
                for images in options.images:
                    records.append(measure(name, kernel, dtype, window, images, options))
                    print(records[-1], flush=True)
    write_results(options.output, "kernels", [asdict(r) for r in records], make_table(records))
    print(make_table(records))


if __name__ == "__main__":
    main()
