"""The embedded demo model: a Llama-shaped decoder with an FSQ autoencoder, all in one folder."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.params import ImageOptions, parse

from .base import ImageModelSpec, Prompts
from .checkpoint import Checkpoint
from .fsq import CONFIG_FILE, WEIGHTS_FILE, FSQAutoencoder
from .sizes import FixedSizes

FAMILY = "zipar-demo"
SPEC_FILE = "image_model.json"


def read(checkpoint: Checkpoint) -> dict[str, Any]:
    """The contents of ``image_model.json``.

    Raises:
        UnusableModelError: there is no such file, or it is of another family.
    """
    if checkpoint.find(SPEC_FILE) is None:
        raise checkpoint.error(
            f"it is no image model: it has no {SPEC_FILE}",
            "a Llama that draws no pictures is served by vLLM itself",
        )
    contents = checkpoint.json(SPEC_FILE)
    family = contents.get("family")
    if family != FAMILY:
        raise checkpoint.error(f"{SPEC_FILE}: family {family!r} is unknown, known is {FAMILY!r}")
    return contents


class DemoModel:
    """Prompts as ``<prefix> text <suffix>``; the unconditional prompt has no text."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        contents = read(checkpoint)
        self.spec = self.read_spec(checkpoint)
        self._prefix: list[int] = contents["prompt_prefix_ids"]
        self._suffix: list[int] = contents["prompt_suffix_ids"]
        with checkpoint.finding():
            self._tokenizer = Tokenizer.from_file(str(checkpoint.file("tokenizer.json")))
        files = [checkpoint.file(f"vq/{name}") for name in (CONFIG_FILE, WEIGHTS_FILE)]
        self._autoencoder = FSQAutoencoder.from_pretrained(files[0].parent).to(device)
        self._device = device

    @staticmethod
    def read_spec(checkpoint: Checkpoint) -> ImageModelSpec:
        """The facts that ``image_model.json`` states."""
        contents = read(checkpoint)
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
            sizes=FixedSizes(grids),
            defaults=parse(ImageOptions, contents["defaults"]),
            max_prompt_tokens=contents["max_text_tokens"] + special,
            details={"styles": contents["styles"], "concepts": contents["concepts"]},
        )

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
        return self._autoencoder.decode(codes.to(self._device))
