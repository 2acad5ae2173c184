"""Token ids around the picture, and prompts of one length."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Layout:
    """Token ids around the picture."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    eol: int
    image_start: int
    pad: int = 0


def pad_prompts(
    prompts: list[list[int]], layout: Layout, length: int
) -> tuple[torch.Tensor, list[int]]:
    """Whole prompts padded on the left; int64 ``[B, length]`` and the padding of each."""
    rows, pads = [], []
    for text in prompts:
        ids = [*layout.prefix, *text, *layout.suffix]
        pads.append(length - len(ids))
        rows.append([layout.pad] * pads[-1] + ids)
    return torch.tensor(rows), pads
