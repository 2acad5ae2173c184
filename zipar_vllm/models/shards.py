"""Write a checkpoint's tensors, a file at a time, so that no more than one is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from .checkpoint import WEIGHTS, WEIGHTS_INDEX


def save_shards(
    target: Path, shards: Sequence[Callable[[], Iterable[tuple[str, torch.Tensor]]]]
) -> None:
    """Write files and, where there are several, their index, as transformers names them.

    Args:
        target: A folder.
        shards: Each reads the tensors of one file, by name.
    """
    weight_map: dict[str, str] = {}
    for number, read in enumerate(shards, start=1):
        of_many = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        written = WEIGHTS if len(shards) == 1 else of_many
        tensors = {name: tensor.contiguous() for name, tensor in read()}
        save_file(tensors, target / written, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, written)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (target / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2))
