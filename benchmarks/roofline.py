"""What memory and arithmetic alone cost: tables of ``docs/performance.md``, computed.

Nothing here is measured. A step takes at least as long as reading what it needs from memory, and as
its multiplications; a roofline is the greater of both, and no program is faster.

- *Read*, per step: every weight but the input embeddings' once, and the keys and values of each
  lane, whose pictures are half drawn on average: (weights + images * lanes * tokens / 2 * numbers
  per token) * 2 bytes / bandwidth.
- *Multiplied*, per input: two operations a weight, and four a key, head and number of a head:
  inputs * (2 * weights + 4 * tokens / 2 * layers * heads * head size) / rate.

``python -m benchmarks.tables`` writes them into the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.report import markdown_table
from benchmarks.shapes import EMU3, JANUS_7B, LLAMAGEN_XL, SHAPES, Shape
from zipar_vllm.core.grid import Grid
from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.params import ImageParams

H100_BYTES = 3.35e12
"""Bytes per second of an H100 SXM's memory (NVIDIA H100 data sheet)."""
H100_OPERATIONS = 989.5e12
"""Operations per second of an H100 SXM in bfloat16: the data sheet's 1,979 TFLOPS count zeros left
out by sparsity, as many again.
"""
H100_MEMORY = 80e9
USED_SHARE = 0.9
"""Of the memory, about what vLLM takes where nothing is said."""
ITEM = 2
LANES = 2
PROMPT = 60
"""Tokens of a prompt, for the tables: of both lanes alike."""
BLOCK_SIZE = 64

SIZES: dict[str, tuple[tuple[str, Grid], ...]] = {
    "Emu3-Gen": (("512x512", Grid(64, 64, True)), ("720x720", Grid(90, 90, True))),
    "Lumina-mGPT-7B": (
        ("512x512", Grid(32, 32, True)),
        ("768x768", Grid(48, 48, True)),
        ("1024x1024", Grid(64, 64, True)),
    ),
    "Janus-Pro-7B": (("384x384", Grid(24, 24)),),
    "Janus-Pro-1B": (("384x384", Grid(24, 24)),),
    "LlamaGen-3B": (("256x256", Grid(16, 16)), ("384x384", Grid(24, 24))),
    "LlamaGen-XL": (
        ("256x256", Grid(16, 16)),
        ("384x384", Grid(24, 24)),
        ("512x512", Grid(32, 32)),
    ),
    "LlamaGen-B": (("256x256", Grid(16, 16)), ("384x384", Grid(24, 24))),
}
"""Pictures of each model, by the beginning of its name."""


@dataclass(frozen=True)
class Roofline:
    """A mean step of some images, guided, in seconds.

    Attributes:
        inputs: Of the step, all lanes.
        steps: Of each image.
        reading, computing: What each takes alone.
    """

    inputs: float
    steps: int
    reading: float
    computing: float

    @property
    def seconds(self) -> float:
        """The least that a step can take."""
        return max(self.reading, self.computing)


def roofline(shape: Shape, grid: Grid, window: int, images: int) -> Roofline:
    """The bounds of a mean step on an H100."""
    steps = grid.num_steps(window)
    inputs = images * LANES * grid.num_positions / steps
    keys = PROMPT + grid.num_positions / 2
    read = ITEM * shape.weights + images * LANES * keys * shape.kv_bytes(ITEM)
    per_key = 4 * shape.layers * shape.heads * shape.head_size
    computed = inputs * (2 * shape.weights + keys * per_key)
    return Roofline(inputs, steps, read / H100_BYTES, computed / H100_OPERATIONS)


def free_inputs(shape: Shape, grid: Grid, images: int) -> float:
    """Inputs of a step up to which reading takes longer than multiplying."""
    one = roofline(shape, grid, grid.columns, images)
    return one.inputs * one.reading / one.computing


def image_bytes(shape: Shape, grid: Grid, itemsize: int = ITEM) -> int:
    """Bytes of the KV cache that a guided image holds at its end."""
    params = ImageParams(temperature=1.0, window=grid.columns)
    job = ImageJob(grid, params, (PROMPT,) * LANES)
    return job.num_blocks(BLOCK_SIZE) * BLOCK_SIZE * shape.kv_bytes(itemsize)


def _pictures() -> Iterator[tuple[Shape, str, Grid]]:
    for shape in SHAPES:
        (sizes,) = (own for name, own in SIZES.items() if shape.name.startswith(name))
        for size, grid in sizes:
            yield shape, size, grid


def memory_table() -> list[str]:
    """KV cache per image, by model and size, and how many images an H100 holds."""
    head = ["model", "size", "grid", "weights, GB", "KiB per token", "MiB per image"]
    rows = []
    for shape, size, grid in _pictures():
        weights = ITEM * (shape.weights + shape.width * shape.columns)
        own = image_bytes(shape, grid)
        room = USED_SHARE * H100_MEMORY - weights
        rows.append(
            [
                shape.name,
                size,
                f"{grid.rows} x {grid.columns}",
                f"{weights / 1e9:.1f}",
                f"{shape.kv_bytes(ITEM) / 1024:.0f}",
                f"{own / 2**20:.0f}",
                f"{room // own:.0f}",
            ]
        )
    return markdown_table([*head, "images in 80 GB"], rows)


def free_inputs_table() -> list[str]:
    """Inputs of a step that cost no more than one, by model and images at a time."""
    counts = (1, 4, 16)
    head = ["model", "size", *(f"{n} image" + "s" * (n > 1) for n in counts), "fed per image"]
    rows = []
    for shape, size, grid in _pictures():
        if grid != shape.grid:
            continue
        fed = LANES * grid.num_positions / grid.num_steps(shape.window)
        cells = [f"{free_inputs(shape, grid, count):.0f}" for count in counts]
        rows.append([shape.name, size, *cells, f"{fed:.0f} (window {shape.window})"])
    return markdown_table(head, rows)


def roofline_table() -> list[str]:
    """A mean step and an image, by window and images at a time."""
    head = ["model", "window", "steps", "images", "inputs", "reading, ms", "computing, ms"]
    rows = []
    for shape in (EMU3, JANUS_7B, LLAMAGEN_XL):
        for window in (shape.grid.columns, 8, 4):
            for images in (1, 4, 16):
                own = roofline(shape, shape.grid, window, images)
                rows.append(
                    [
                        shape.name,
                        f"{window}" + ", raster order" * (window == shape.grid.columns),
                        str(own.steps),
                        str(images),
                        f"{own.inputs:.0f}",
                        f"{1e3 * own.reading:.2f}",
                        f"{1e3 * own.computing:.2f}",
                        f"{own.steps * own.seconds:.2f}",
                        f"{images / (own.steps * own.seconds):.2f}",
                    ]
                )
    return markdown_table([*head, "seconds per image", "images/s"], rows)


def grid_table() -> list[str]:
    """How cost grows with the grid, for Emu3's shape: steps, memory and the least time."""
    head = ["grid", "positions", "steps, raster", "window 8", "MiB per image"]
    head += ["seconds, raster", "window 8"]
    rows = []
    for side in (24, 32, 48, 64, 90, 128):
        grid = Grid(side, side, True)
        plain, fast = (roofline(EMU3, grid, window, 1) for window in (side, 8))
        rows.append(
            [
                f"{side} x {side}",
                str(grid.num_positions),
                str(plain.steps),
                str(fast.steps),
                f"{image_bytes(EMU3, grid) / 2**20:.0f}",
                f"{plain.steps * plain.seconds:.1f}",
                f"{fast.steps * fast.seconds:.2f}",
            ]
        )
    return markdown_table(head, rows)
