"""Time the attention kernel on a GPU: its error, and its bandwidth beside what else could do it.

    python -m benchmarks.gpu.kernel [--lanes 2 8 32] [--columns 90] [--window 7]

The lanes are Emu3's, 32 heads over 8 key heads of 128 in bfloat16, at the end of a picture of 90
by 90: 8,000 keys with the holes of rows under way, 13 queries. Measured beside it: the bandwidth
of a plain copy; torch's attention over the same keys in one piece (not paged) with the same mask,
by scaled_dot_product_attention and by FlexAttention; and, as the floor, causal attention by SDPA,
which has no holes to mind.

Goals, at 8 lanes: at least 80 % of the copy's bandwidth, at most 1.15 times the causal floor.

Needs a GPU, torch, numpy and triton, and nothing else. Writes ``kernel.json`` and ``kernel.md``
into ``benchmarks/results/gpu/``. What fails is told and left out; the rest is measured all the
same.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import triton
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.report import RESULTS, command_line, markdown_table, write_results
from zipar_vllm.attention.interface import AttentionInputs
from zipar_vllm.attention.triton_attention import TritonAttention
from zipar_vllm.core.grid import Grid
from zipar_vllm.core.visibility import UNWRITTEN, feed_steps

BLOCK_SIZE = 64
PROMPT = 30
GOAL_OF_COPY = 0.8
GOAL_OF_FLOOR = 1.15


@dataclass(frozen=True)
class Record:
    """Medians of one way to attend; ``gigabytes_s`` counts every visible key and value once."""

    what: str
    lanes: int
    queries: int
    keys: int
    microseconds: float | None
    gigabytes_s: float | None
    of_copy: float | None
    largest_error: float | None
    failed: str
    device: str
    torch: str
    triton: str
    command: str


class Case:
    """A step of some lanes, all alike, near the end of a picture: paged, and in one piece."""

    def __init__(self, options: argparse.Namespace, lanes: int) -> None:
        device, dtype = torch.device(options.device), getattr(torch, options.dtype)
        self.heads, self.kv_heads, self.size = options.heads, options.kv_heads, options.head_size
        grid = Grid(options.rows, options.columns, True)
        steps = feed_steps(grid, options.window, PROMPT)
        # The last step in which all rows that a window keeps under way are there.
        now = int(steps[PROMPT + (grid.rows - 2) * grid.stride])
        positions = torch.nonzero(steps == now).squeeze(1)
        self.keys, self.queries, self.lanes = int(positions[-1]) + 1, len(positions), lanes
        blocks = -(-len(steps) // BLOCK_SIZE)
        orders = torch.full((blocks * BLOCK_SIZE,), UNWRITTEN, dtype=torch.int32)
        orders[: len(steps)] = torch.where(steps <= now, steps, UNWRITTEN).to(torch.int32)
        torch.manual_seed(0)
        table = torch.randperm(lanes * blocks).view(lanes, blocks)
        slots = table[:, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        self.inputs = AttentionInputs(
            positions=positions.repeat(lanes).to(device),
            limits=torch.full((lanes * self.queries,), now, dtype=torch.int32, device=device),
            slot_mapping=slots.view(-1).to(device),
            lanes=np.arange(lanes),
            lane_starts=np.arange(lanes + 1) * self.queries,
            last_positions=np.full(lanes, self.keys - 1),
            num_decoding=lanes,
            orders=orders.repeat(lanes, 1).to(device),
            block_table=table.to(device),
            block_size=BLOCK_SIZE,
        )
        shape = (lanes * self.queries, self.heads, self.size)
        self.query = torch.randn(shape, device=device, dtype=dtype)
        # Per lane in one piece; the unwritten ones hold numbers too, so that others may read them.
        kv = (lanes, self.kv_heads, blocks * BLOCK_SIZE, self.size)
        self.key, self.value = (torch.randn(kv, device=device, dtype=dtype) for _ in range(2))
        cache = torch.empty(
            lanes * blocks, self.kv_heads, 2, BLOCK_SIZE, self.size, device=device, dtype=dtype
        )
        for which, numbers in enumerate((self.key, self.value)):
            pages = numbers.view(lanes, self.kv_heads, blocks, BLOCK_SIZE, self.size)
            cache[table.to(device), :, which] = pages.transpose(1, 2)
        self.cache = cache.view(lanes * blocks, self.kv_heads, BLOCK_SIZE, 2 * self.size)
        at = positions.to(device)
        self.new_key, self.new_value = (
            numbers[:, :, at].transpose(1, 2).reshape(-1, self.kv_heads, self.size).contiguous()
            for numbers in (self.key, self.value)
        )
        self.key, self.value = self.key[:, :, : self.keys], self.value[:, :, : self.keys]
        seen = (orders <= now)[: self.keys].to(device)
        self.mask = seen & (torch.arange(self.keys, device=device) <= at[:, None])
        self.orders, self.positions, self.now = orders[: self.keys].to(device), at, now
        visible = int(seen.sum())
        self.bytes = 2 * lanes * visible * self.kv_heads * self.size * dtype.itemsize

    def by_lane(self) -> torch.Tensor:
        """The queries, ``[lanes, heads, queries, size]``."""
        return self.query.view(self.lanes, self.queries, self.heads, self.size).transpose(1, 2)

    def reference(self) -> torch.Tensor:
        """Dense attention in float64, lane after lane: ``[lanes, heads, queries, size]``."""
        outputs = []
        for query, key, value in zip(self.by_lane(), self.key, self.value, strict=True):
            group = self.heads // self.kv_heads
            key, value = (part.double().repeat_interleave(group, 0) for part in (key, value))
            scores = query.double() @ key.transpose(1, 2) * self.size**-0.5
            scores = scores.masked_fill(~self.mask, float("-inf"))
            outputs.append(scores.softmax(-1) @ value)
        return torch.stack(outputs)


Run = Callable[[], torch.Tensor]


def ours(case: Case, captured: bool) -> Run:
    """The Triton kernel, writes included; launched one by one, or as a CUDA graph."""
    query, output = case.query, torch.empty_like(case.query)
    group = case.heads // case.kv_heads
    kernel = TritonAttention(group, case.size, query.dtype, query.device)
    metadata = kernel.prepare(case.inputs)

    def launch() -> None:
        kernel.run(
            query, case.new_key, case.new_value, case.cache, metadata, case.size**-0.5, output
        )

    if captured:
        launch()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
        launch = graph.replay

    def run() -> torch.Tensor:
        launch()
        return output.view(case.lanes, case.queries, case.heads, case.size).transpose(1, 2)

    return run


def sdpa(case: Case, mask: Any) -> Run:
    query = case.by_lane().contiguous()
    return lambda: F.scaled_dot_product_attention(
        query, case.key, case.value, attn_mask=mask, enable_gqa=True
    )


def flex(case: Case) -> Run:
    def visible(lane: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        known: torch.Tensor = case.orders[key] <= case.now
        return known & (key <= case.positions[query])

    device = case.query.device
    mask = create_block_mask(visible, None, None, case.queries, case.keys, device=device)
    query = case.by_lane().contiguous()
    attend = torch.compile(flex_attention) if device.type == "cuda" else flex_attention
    return lambda: attend(query, case.key, case.value, block_mask=mask, enable_gqa=True)


WAYS: dict[str, Callable[[Case], Run]] = {
    "this kernel": lambda case: ours(case, captured=False),
    "this kernel, captured": lambda case: ours(case, captured=True),
    "SDPA, the same mask": lambda case: sdpa(case, case.mask),
    "FlexAttention, the same mask": flex,
    "causal SDPA": lambda case: sdpa(case, causal_lower_right(case.queries, case.keys)),
}
HAS_NO_HOLES = "causal SDPA"


def microseconds(run: Callable[[], object], device: torch.device) -> float:
    """Median, with an empty cache each time; on a CPU of a single run, for trying this file out."""
    if device.type == "cuda":
        return float(triton.testing.do_bench(run, warmup=50, rep=200, return_mode="median")) * 1e3
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e6


def copy_bandwidth(device: torch.device) -> float:
    """Gigabytes read and written per second by a copy: of 1 GiB, or 1 MiB in a dry run."""
    size = 1 << (30 if device.type == "cuda" else 20)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / microseconds(lambda: target.copy_(source), device) / 1e3


def measure(case: Case, copy: float, command: str) -> list[Record]:
    """Try every way in turn."""
    device = case.query.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, a dry run"
    expected, records = case.reference(), []
    for what, make in WAYS.items():
        taken = error = None
        failed = ""
        try:
            run = make(case)
            if what != HAS_NO_HOLES:
                error = float((run().double() - expected).abs().max())
            taken = microseconds(run, device)
        except Exception as problem:  # whatever it is, the others are measured
            failed = f"{type(problem).__name__}: {problem}".partition("\n")[0][:200]
        rate = case.bytes / taken / 1e3 if taken else None
        record = Record(
            what=what,
            lanes=case.lanes,
            queries=case.queries,
            keys=case.keys,
            microseconds=taken,
            gigabytes_s=rate,
            of_copy=rate / copy if rate else None,
            largest_error=error,
            failed=failed,
            device=name,
            torch=torch.__version__,
            triton=triton.__version__,
            command=command,
        )
        print(f"{case.lanes} lanes, {what}: {taken} us, {rate} GB/s {failed}", flush=True)
        records.append(record)
    return records


def report(records: list[Record], copy: float) -> str:
    first = records[0]
    head = ["lanes", "way", "µs", "GB/s", "of a copy's", "of the causal floor", "largest error"]
    floors = {one.lanes: one.microseconds for one in records if one.what == HAS_NO_HOLES}
    rows = []
    for one in records:
        floor = floors.get(one.lanes)
        if one.microseconds is None or one.gigabytes_s is None or one.of_copy is None:
            rows.append([str(one.lanes), one.what, one.failed, "", "", "", ""])
            continue
        rows.append(
            [
                str(one.lanes),
                one.what,
                f"{one.microseconds:.0f}",
                f"{one.gigabytes_s:.0f}",
                f"{one.of_copy:.0%}",
                f"{one.microseconds / floor:.2f}x" if floor else "",
                "" if one.largest_error is None else f"{one.largest_error:.1e}",
            ]
        )
    lines = [
        "# The attention kernel alone",
        "",
        f"{first.device}, torch {first.torch}, Triton {first.triton}; {first.queries} queries and "
        f"{first.keys} keys per lane. A copy moves {copy:.0f} GB/s, reads and writes together.",
        "",
        *markdown_table(head, rows),
        "",
        f"Goals at 8 lanes: {GOAL_OF_COPY:.0%} of the copy, {GOAL_OF_FLOOR}x the causal floor. "
        f"`{first.command}`",
    ]
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cpu tries this file out, no more")
    parser.add_argument("--lanes", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--rows", type=int, default=90)
    parser.add_argument("--columns", type=int, default=90)
    parser.add_argument("--window", type=int, default=7)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu")
    options = parser.parse_args(words)
    device = torch.device(options.device)
    copy = copy_bandwidth(device)
    command = command_line("benchmarks.gpu.kernel", words)
    records: list[Record] = []
    for lanes in options.lanes:
        records += measure(Case(options, lanes), copy, command)
        listing = [asdict(record) for record in records]
        write_results(options.output, "kernel", listing, report(records, copy))
    return int(any(record.failed for record in records))


if __name__ == "__main__":
    sys.exit(main())
