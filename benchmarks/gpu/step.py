"""Time a decoding step on a GPU: the whole decoding room over random models, without vLLM.

    python -m benchmarks.gpu.step [--shapes emu3 llamagen-xl] [--images 1 4 16]

Random models of Emu3-Gen's and LlamaGen-XL's shape, in bfloat16, decode guided images in raster
order and under windows 8 and 4. The images are taken to the middle of their steps, where all rows
that a window keeps under way are there; their earlier keys are zeros, which costs no less. Steps
are launched one by one (*eager*) or replayed as CUDA graphs (*captured*).

Beside it stands the time that reading memory alone takes: all weights but the input embeddings
and all visible keys and values, at the bandwidth of a plain copy. Goal, captured, at one image: a
window's step takes at most 1 / 0.95 of raster order's.

Needs a GPU, torch, triton and numpy; neither vLLM, transformers nor pydantic. Writes ``step.json``
and ``step.md`` into ``benchmarks/results/gpu/`` after every line. What fails is told and left out.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.gpu.kernel import copy_bandwidth
from benchmarks.report import RESULTS, command_line, markdown_table, write_results
from benchmarks.shapes import EMU3, LLAMAGEN_XL, TINY, Shape
from zipar_vllm.attention.select import select_kernel
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.decoding.batch import StepBatch
from zipar_vllm.decoding.decoder import ImageDecoder
from zipar_vllm.decoding.fixed_window import fixed_window
from zipar_vllm.decoding.header import bucket
from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.params import ImageParams

SHAPES = {"emu3": EMU3, "llamagen-xl": LLAMAGEN_XL, "tiny": TINY}
WINDOWS = (8, 4)
BLOCK_SIZE = 64
PROMPTS = (40, 30)
GOAL_OF_RATIO = 0.95
EAGER, CAPTURED = "eager", "captured"
WARM_UP = 4
STEPS = 8


@dataclass(frozen=True)
class Record:
    """Medians, in milliseconds, of one way to take steps.

    ``host_ms`` is until the last launch of a step returned, ``memory_ms`` computed (see above).
    """

    shape: str
    images: int
    window: int
    way: str
    inputs: int
    ms: float | None
    host_ms: float | None
    memory_ms: float
    failed: str
    device: str
    torch: str
    command: str


class RandomModel:
    """A random Llama of some shape; see :class:`~zipar_vllm.decoding.decoder.StepModel`.

    Attributes:
        shape: That one.
        kernel: Its attention's.
        head: The output layer, ``[columns, width]``.
        launched: Forward passes that were launched one by one, or captured.
    """

    def __init__(
        self, shape: Shape, num_blocks: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shape, self.launched = shape, 0
        heads, kv_heads, size = shape.heads, shape.kv_heads, shape.head_size

        def weight(*sides: int) -> torch.Tensor:
            return torch.empty(sides, device=device, dtype=dtype).normal_(std=0.02)

        self._embeddings = weight(shape.columns, shape.width)
        self._layers = [
            (
                weight((heads + 2 * kv_heads) * size, shape.width),
                weight(shape.width, heads * size),
                weight(2 * shape.inner, shape.width),
                weight(shape.width, shape.inner),
            )
            for _ in range(shape.layers)
        ]
        self.head = weight(shape.columns, shape.width)
        self._norm = torch.ones(shape.width, device=device, dtype=dtype)
        self.kernel = select_kernel(device, dtype, heads // kv_heads, size, BLOCK_SIZE)
        sides = (shape.layers, num_blocks, kv_heads, BLOCK_SIZE, 2 * size)
        self._caches = torch.zeros(sides, device=device, dtype=dtype)
        longest = max(PROMPTS) + shape.grid.num_positions
        frequencies = 1e-6 ** (torch.arange(0, size, 2, device=device) / size)
        angles = torch.arange(longest, device=device)[:, None] * frequencies
        self._cos, self._sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(self, batch: StepBatch) -> torch.Tensor:
        """Hidden states of a step's inputs."""
        self.launched += 1
        shape, metadata = self.shape, self.kernel.prepare(batch.attention)
        cos, sin = (table[batch.positions].unsqueeze(1) for table in (self._cos, self._sin))
        x = self._embeddings[batch.input_ids]
        for cache, (qkv, out, up, down) in zip(self._caches, self._layers, strict=True):
            query, key, value = F.linear(self._normed(x), qkv).split(
                [n * shape.head_size for n in (shape.heads, shape.kv_heads, shape.kv_heads)], dim=1
            )
            query, key, value = (
                part.unflatten(1, (-1, shape.head_size)) for part in (query, key, value)
            )
            query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
            output = torch.empty_like(query)
            scale = shape.head_size**-0.5
            self.kernel.run(query, key, value.contiguous(), cache, metadata, scale, output)
            x = x + F.linear(output.flatten(1), out)
            gate, own = F.linear(self._normed(x), up).chunk(2, dim=1)
            x = x + F.linear(F.silu(gate) * own, down)
        return self._normed(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of all of the model's columns."""
        return F.linear(hidden, self.head)

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self._norm.shape, self._norm, 1e-5)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


class Room:
    """Images in the middle of their steps.

    Args:
        model: Decodes them.
        images: How many, guided.
        window: Theirs.
        capture: Whether steps are captured as CUDA graphs first.

    Attributes:
        model, window: As above.
        inputs: Of a step.
        bytes: What a step has to read: weights, keys and values.
    """

    def __init__(self, model: RandomModel, images: int, window: int, capture: bool = False) -> None:
        shape, device = model.shape, model.head.device
        self.model, self.window = model, window
        vocabulary = Vocabulary(
            first_id=shape.columns - shape.num_codes,
            num_codes=shape.num_codes,
            row_terminator=0 if shape.grid.row_terminator else None,
        )
        self.decoder = ImageDecoder(
            max_images=images,
            max_tokens=sum(PROMPTS) + shape.grid.num_positions,
            block_size=BLOCK_SIZE,
            vocabulary=vocabulary,
            device=device,
        )
        params = ImageParams(
            window=window, temperature=1.0, top_k=shape.num_codes // 16, guidance_scale=3.0
        )
        job, policy = ImageJob(shape.grid, params, PROMPTS), fixed_window(shape.grid, window)
        # In raster order too it is in the middle of a row.
        self.middle = (policy.num_steps + shape.grid.columns) // 2
        if capture:
            last = min(self.middle + WARM_UP + STEPS, policy.num_steps)
            widths = {policy.width(step) for step in range(self.middle, last)}
            _capture(self.decoder, model, {bucket(images * job.num_lanes * n) for n in widths})
        blocks = job.num_blocks(BLOCK_SIZE)
        for number in range(images):
            own = list(range(number * blocks, (number + 1) * blocks))
            self.decoder.add(str(number), job, [1] * sum(PROMPTS), own)
        self.scheduled = {str(number): 1 for number in range(images)}
        for name in self.scheduled:
            self.decoder.step({name: sum(PROMPTS)}, model)
            progress = self.decoder.table[name].progress
            for _ in range(self.middle - 1):
                progress.advance(())
        step = self.decoder.table["0"].progress.step()
        self.inputs = images * job.num_lanes * step.num_inputs
        orders = job.policy.orders
        assert orders is not None
        seen = int((orders <= self.middle).sum()) * job.num_lanes + sum(PROMPTS)
        itemsize = model.head.itemsize
        self.bytes = shape.weights * itemsize + images * seen * shape.kv_bytes(itemsize)

    def step(self) -> None:
        self.decoder.step(self.scheduled, self.model)


def _capture(decoder: ImageDecoder, model: RandomModel, capacities: Collection[int]) -> None:
    """Capture steps of so many inputs."""
    stream = torch.cuda.Stream()  # the default one cannot be captured
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        decoder.capture(model, [*capacities], torch.cuda.graph_pool_handle())
    torch.cuda.current_stream().wait_stream(stream)


def eager(room: Room) -> Callable[[], None]:
    """Steps as they are."""
    return room.step


def captured(room: Room) -> Callable[[], None]:
    """The same steps as CUDA graphs, captured before there are images; all of them, or it fails."""
    model = room.model
    own = Room(model, len(room.scheduled), room.window, capture=True)
    launched = model.launched

    def step() -> None:
        own.step()
        if model.launched > launched:
            raise RuntimeError("a step fits none of the captured ones")

    return step


WAYS: dict[str, Callable[[Room], Callable[[], None]]] = {EAGER: eager, CAPTURED: captured}


def time_steps(step: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Milliseconds per step, all of it and the host's part: medians over some steps."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(WARM_UP):
        step()
    whole, host = [], []
    for _ in range(STEPS):
        wait()
        start = time.perf_counter()
        step()
        launched = time.perf_counter()
        wait()
        whole.append(time.perf_counter() - start)
        host.append(launched - start)
    return 1e3 * statistics.median(whole), 1e3 * statistics.median(host)


def measure(room: Room, way: str, copy: float, command: str) -> Record:
    """One line; ``copy``: gigabytes per second of a plain copy."""
    device = room.model.head.device
    ms = host_ms = None
    failed = ""
    try:
        ms, host_ms = time_steps(WAYS[way](room), device)
    except Exception as problem:  # whatever it is, the others are measured
        failed = f"{type(problem).__name__}: {problem}".partition("\n")[0][:200]
    record = Record(
        shape=room.model.shape.name,
        images=len(room.scheduled),
        window=room.window,
        way=way,
        inputs=room.inputs,
        ms=ms,
        host_ms=host_ms,
        memory_ms=room.bytes / copy / 1e6,
        failed=failed,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, a dry run",
        torch=torch.__version__,
        command=command,
    )
    print(record, flush=True)
    return record


def report(records: list[Record], copy: float) -> str:
    first = records[0]
    head = ["model", "images", "window", "inputs", "way", "ms", "host's part", "memory alone"]
    raster = {(r.shape, r.images, r.way, r.window): r.ms for r in records}
    rows = []
    for one in records:
        widest = max(r.window for r in records if r.shape == one.shape)
        floor = raster.get((one.shape, one.images, one.way, widest))
        cells = [one.shape, str(one.images), str(one.window), str(one.inputs), one.way]
        if one.ms is None or one.host_ms is None:
            rows.append([*cells, one.failed, "", "", ""])
            continue
        ratio = f"{floor / one.ms:.2f}" if floor else ""
        rows.append([*cells, f"{one.ms:.2f}", f"{one.host_ms:.2f}", f"{one.memory_ms:.2f}", ratio])
    lines = [
        "# A decoding step",
        "",
        f"{first.device}, torch {first.torch}; random models, guided images. *Memory alone* is "
        f"computed: what a step has to read, at the {copy:.0f} GB/s that a copy moves. The step "
        "ratio is raster order's time over the window's.",
        "",
        *markdown_table([*head, "step ratio"], rows),
        "",
        f"Goal, captured, at one image: a step ratio of {GOAL_OF_RATIO}. `{first.command}`",
    ]
    return "\n".join(lines) + "\n"


def measure_shape(
    shape: Shape, options: argparse.Namespace, copy: float, command: str, done: list[Record]
) -> None:
    """All lines of a shape, written out one by one; what does not fit into memory is left out."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    job = ImageJob(shape.grid, ImageParams(window=1), PROMPTS)
    blocks = max(options.images) * job.num_blocks(BLOCK_SIZE)
    model = RandomModel(shape, blocks, device, dtype)
    windows = [shape.grid.columns, *(w for w in WINDOWS if w < shape.grid.columns)]
    for images in options.images:
        for window in windows:
            room = Room(model, images, window)
            for way in WAYS:
                done.append(measure(room, way, copy, command))
                listing = [asdict(record) for record in done]
                write_results(options.output, "step", listing, report(done, copy))


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cpu tries this file out, no more")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["llamagen-xl", "emu3"])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu")
    options = parser.parse_args(words)
    device = torch.device(options.device)
    copy = copy_bandwidth(device)
    command = command_line("benchmarks.gpu.step", words)
    records: list[Record] = []
    failed = False
    for name in options.shapes:
        try:
            measure_shape(SHAPES[name], options, copy, command, records)
        except Exception as problem:  # the other shapes are measured
            failed = True
            print(f"{name}: {type(problem).__name__}: {problem}", file=sys.stderr, flush=True)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return int(failed or any(record.failed for record in records))


if __name__ == "__main__":
    sys.exit(main())
