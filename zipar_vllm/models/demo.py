"""The embedded demo model: a Llama-shaped decoder with an FSQ autoencoder, all in one folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer

from zipar_vllm.core.grid import Grid

from .base import ImageDefaults, ImageModelSpec, ImageTokens
from .fsq import FSQAutoencoder

FAMILY = "zipar-demo"
SPEC_FILE = "image_model.json"
DEMO_PATH = Path(__file__).resolve().parent.parent / "demo"


def load_spec(path: Path) -> ImageModelSpec:
    """Read ``image_model.json``."""
    raw = json.loads((path / SPEC_FILE).read_text())
    tokens = ImageTokens(
        start=raw["image_token_start"],
        count=raw["image_token_count"],
        row_terminator=raw["row_terminator_id"],
    )
    terminated = tokens.row_terminator is not None
    special = len(raw["prompt_prefix_ids"]) + len(raw["prompt_suffix_ids"])
    return ImageModelSpec(
        family=raw["family"],
        tokens=tokens,
        grids={g["size"]: Grid(g["rows"], g["columns"], terminated) for g in raw["grids"]},
        defaults=ImageDefaults(**raw["defaults"]),
        max_prompt_tokens=raw["max_prompt_tokens"] + special,
        details={"styles": raw["styles"], "concepts": raw["concepts"]},
    )


class DemoModel:
    """Prompts as ``<prefix> text <suffix>``; the unconditional prompt has no text."""

    def __init__(self, path: Path) -> None:
        raw = json.loads((path / SPEC_FILE).read_text())
        self.spec = load_spec(path)
        self._prefix: list[int] = raw["prompt_prefix_ids"]
        self._suffix: list[int] = raw["prompt_suffix_ids"]
        self._max_text_tokens: int = raw["max_prompt_tokens"]
        self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self._autoencoder = FSQAutoencoder.from_pretrained(path / "vq")

    def encode_prompt(self, prompt: str) -> list[int]:
        """Encode a caption; text past ``max_prompt_tokens`` is cut (the model was trained so)."""
        ids = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        return [*self._prefix, *ids[: self._max_text_tokens], *self._suffix]

    def encode_unconditional(self, negative_prompt: str | None) -> list[int]:
        """Encode what guidance steers away from."""
        return self.encode_prompt(negative_prompt or "")

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Draw pictures: int64 ``[B, rows, columns]`` to uint8 ``[B, H, W, 3]``."""
        return self._autoencoder.decode(codes)
