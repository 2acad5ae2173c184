"""What the decoder is shown in training: ZipAR's visibility, and damaged pictures."""

from __future__ import annotations

import random
from functools import lru_cache

import torch

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.visibility import visibility_mask

ROWS = COLUMNS = 24


def demo_grid() -> Grid:
    return Grid(ROWS, COLUMNS, row_terminator=True)


def draw_window(rng: random.Random, share: float) -> int:
    """A window to train under: raster, or with probability ``share`` a ZipAR window."""
    if rng.random() >= share:
        return COLUMNS
    return rng.choice((4, 4, 4, 4, 8, 8, 8, 2, 3, 5, 6, 12, 16))


@lru_cache(maxsize=64)
def window_mask(window: int, prompt: int) -> torch.Tensor:
    """Visibility of a prompt of ``prompt`` positions and a picture; bool ``[L, L]``."""
    return visibility_mask(demo_grid(), window, prompt)


def batch_mask(windows: list[int], pads: list[int], prompt: int) -> torch.Tensor:
    """Masks of a batch whose prompts are padded on the left; bool ``[B, 1, L, L]``.

    A padded position sees itself only, and nothing else sees it.
    """
    masks = torch.stack([window_mask(window, prompt) for window in windows])
    for mask, pad in zip(masks, pads, strict=True):
        mask[:, :pad] = False
        mask[range(pad), range(pad)] = True
    return masks.unsqueeze(1)


def corrupt(
    codes: torch.Tensor, levels: tuple[int, ...], highest: float, generator: torch.Generator
) -> torch.Tensor:
    """Damage pictures the way sampling does, so that the model learns to recover.

    Each picture has its own rate. Half of them: uniform in [0, highest]; damaged tokens become, in
    equal parts, a token of the same picture from elsewhere, a near code (some channels one level
    off), or any code, and a third also has one short run replaced by a shifted copy. The other
    half: uniform in [highest, 1], and half of these have tokens of another picture of the batch,
    in place. Without that, the model reads what to draw off the tokens before and hardly listens
    to the caption: it then draws fine pictures of the wrong thing.

    Args:
        codes: int64 ``[B, rows, columns]``.
        levels: Levels of the code's channels.
        highest: Largest share of damaged tokens in the lightly damaged half.
        generator: Source of randomness.

    Returns:
        int64 ``[B, rows, columns]``.
    """
    batch, rows, columns = codes.shape
    flat = codes.flatten(1)
    cells = rows * columns

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    elsewhere = flat.gather(1, (rand(batch, cells) * cells).long())
    count = int(torch.tensor(levels).prod())
    anything = (rand(batch, cells) * count).long()
    near = _neighbours(flat, levels, generator)
    kind = rand(batch, cells)
    other = torch.where(kind < 1 / 3, elsewhere, torch.where(kind < 2 / 3, near, anything))
    heavy = rand(batch, 1) < 0.5
    foreign = flat.roll(1, 0)
    other = torch.where(heavy & (rand(batch, 1) < 0.5), foreign, other)
    rate = rand(batch, 1)
    rate = torch.where(heavy, highest + rate * (1 - highest), rate * highest)
    out = torch.where(rand(batch, cells) < rate, other, flat)
    start = (rand(batch, 1) * cells).long()
    length = (rand(batch, 1) * columns).long() * (rand(batch, 1) < 1 / 3)
    place = torch.arange(cells)
    shifted = flat.roll(1, 1)
    out = torch.where((place >= start) & (place < start + length), shifted, out)
    return out.view(batch, rows, columns)


def _neighbours(
    codes: torch.Tensor, levels: tuple[int, ...], generator: torch.Generator
) -> torch.Tensor:
    out, base = torch.zeros_like(codes), 1
    for size in levels:
        digit = codes // base % size
        move = (torch.rand(codes.shape, generator=generator) * 3).long() - 1
        out += (digit + move).clamp(0, size - 1) * base
        base *= size
    return out
