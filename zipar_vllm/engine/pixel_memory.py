"""What rendering pixels takes of a GPU's memory, found out by the worker that shares the GPU.

Pixels are rendered in another process, which loads its decoder once the KV cache is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from zipar_vllm.core.grid import Grid
from zipar_vllm.models.base import ImageModelSpec
from zipar_vllm.models.registry import default_device, load_image_model
from zipar_vllm.models.sizes import parse_size
from zipar_vllm.models.tiles import MAX_BATCH, WHOLE_PIXELS, batch_size

from .vllm_api import current_platform

PIXEL_DEVICE = "zipar_pixel_device"
"""Key of vLLM's ``additional_config``: the device that renders pixels, such as ``cuda:1``; empty is
the default one. Without it, nobody renders any."""


def tell_pixel_device(additional: Mapping[str, Any] | None, device: str) -> dict[str, Any]:
    """An ``additional_config`` that tells workers where pixels are rendered; on a CPU, as it is.

    There it would change nothing but the names under which vLLM keeps compiled models.
    """
    told = {} if current_platform.is_cpu() else {PIXEL_DEVICE: device}
    return {**told, **(additional or {})}


def renders_pixels(additional: Mapping[str, Any] | None, device: torch.device) -> bool:
    """Whether the device that workers were told of is this GPU."""
    told = (additional or {}).get(PIXEL_DEVICE)
    if told is None or device.type != "cuda":
        return False
    pixels = torch.device(told or default_device())
    return pixels.type == "cuda" and (pixels.index or 0) == (device.index or 0)


def measure_pixels(model: str, revision: str | None, device: torch.device, max_tokens: int) -> int:
    """Load a model's text and pixel side, render the widest batch, and tell the bytes it took.

    They are what torch's allocator reserved, which a process that renders does not give back.

    Args:
        model: A folder, or a hub id.
        revision: Of the hub id.
        device: A GPU.
        max_tokens: Of an image, its prompt included.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    image_model = load_image_model(model, revision, device)
    grid = widest_grid(image_model.spec, max_tokens)
    if grid is not None:
        image_model.decode(torch.zeros(MAX_BATCH, grid.rows, grid.columns, dtype=torch.int64))
    return torch.cuda.max_memory_reserved(device) - before


def widest_grid(spec: ImageModelSpec, max_tokens: int) -> Grid | None:
    """The grid of which most pixels are rendered at once; None if no picture fits.

    Sizes that are not listed are represented by the one that is nearest to the largest square that
    is rendered whole; those above it are rendered in tiles, which takes less.
    """
    side = math.isqrt(WHOLE_PIXELS)
    widest: tuple[int, Grid] | None = None
    for size in (*spec.sizes.listed, spec.sizes.nearest(f"{side}x{side}") or ""):
        grid, pixels = spec.sizes.grid(size), math.prod(parse_size(size) or (0,))
        if grid is None or grid.num_positions >= max_tokens:
            continue
        at_once = pixels * batch_size(pixels) if pixels <= WHOLE_PIXELS else 0
        if widest is None or at_once > widest[0]:
            widest = at_once, grid
    return widest and widest[1]
