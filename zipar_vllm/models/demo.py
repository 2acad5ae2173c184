"""The embedded demo model: a Llama-shaped decoder with an FSQ autoencoder, all in one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.params import ImageOptions, parse

from .base import ImageModelSpec, Prompts
from .fsq import FSQAutoencoder

FAMILY = "zipar-demo"
SPEC_FILE = "image_model.json"


def read(path: Path) -> dict[str, Any]:
    """The contents of ``image_model.json``.

    Raises:
        ValueError: ``path`` has no such file, or it is of another family.
    """
    file = path / SPEC_FILE
    if not file.is_file():
        raise ValueError(f"{path} is no image model: it has no {SPEC_FILE}")
    contents: dict[str, Any] = json.loads(file.read_text())
    family = contents.get("family")
    if family != FAMILY:
        raise ValueError(f"{file}: family {family!r} is unknown, known is {FAMILY!r}")
    return contents


def make_spec(contents: Mapping[str, Any]) -> ImageModelSpec:
    """The facts that ``image_model.json`` states."""
    vocabulary = Vocabulary(
        first_id=contents["image_token_start"],
        num_codes=contents["image_token_count"],
        row_terminator=contents["row_terminator_id"],
    )
    grids = {
        grid["size"]: Grid(grid["rows"], grid["columns"], vocabulary.is_terminated)
        for grid in contents["grids"]
    }
    special = len(contents["prompt_prefix_ids"]) + len(contents["prompt_suffix_ids"])
    return ImageModelSpec(
        family=contents["family"],
        vocabulary=vocabulary,
        grids=grids,
        defaults=parse(ImageOptions, contents["defaults"]),
        max_prompt_tokens=contents["max_text_tokens"] + special,
        details={"styles": contents["styles"], "concepts": contents["concepts"]},
    )


class DemoModel:
    """Prompts as ``<prefix> text <suffix>``; the unconditional prompt has no text."""

    def __init__(self, path: Path) -> None:
        contents = read(path)
        self.spec = make_spec(contents)
        self._prefix: list[int] = contents["prompt_prefix_ids"]
        self._suffix: list[int] = contents["prompt_suffix_ids"]
        self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self._autoencoder = FSQAutoencoder.from_pretrained(path / "vq")

    def prompts(self, text: str, negative: str | None, grid: Grid, guided: bool) -> Prompts:
        """Encode both lanes' texts; the grid is always the same."""
        unconditional = self._encode(negative or "") if guided else []
        return Prompts(self._encode(text), unconditional)

    def _encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [*self._prefix, *ids, *self._suffix]

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Render pictures: int64 ``[B, rows, columns]`` to uint8 ``[B, H, W, 3]``."""
        return self._autoencoder.decode(codes)
