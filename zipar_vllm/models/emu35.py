"""Emu3.5 (arXiv 2510.26583) as its authors publish it: ``BAAI/Emu3.5-Image``, ``BAAI/Emu3.5``.

Template, shapes, guidance and sampling are those of the authors' ``configs/example_config_t2i.py``
and ``src/utils/logits_processor.py`` (github.com/baaivision/Emu3.5). Three things are otherwise:
the picture begins at once, where the authors let the model write before it; a negative prompt,
which they do not have, is phrased as a prompt is; and the last row ends as all do, where the
authors have the token that ends the picture: no image token sees either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, Qwen3Config, Qwen3ForCausalLM

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.params import ImageOptions

from .base import ImageModelSpec, Prompts
from .checkpoint import SAME_SOURCE, Checkpoint
from .emu3_tokens import (
    BEGIN,
    EMU3_VOCABULARY,
    ROW_TERMINATOR,
    VISION_TOKENS,
    VISUAL,
    begin_picture,
    read_tokenizer,
    special_ids,
    vision_tokenizer,
)
from .sizes import AnySizes
from .tiles import render
from .vqgan import VQGANDecoder

ASSISTANT = "You are a helpful assistant"
ANSWER = "<|extra_100|>"
TEMPLATE = f"{BEGIN}{ASSISTANT} for t2i task. USER: {{text}} ASSISTANT: {ANSWER}"
UNCONDITIONAL = f"{BEGIN}{ASSISTANT}. USER:  ASSISTANT: {ANSWER}"

VISION_TOKENIZER = "Emu3.5-VisionTokenizer"
FACTOR = 16
"""Pixels per token, each way."""
TARGET_SIZE = 1024
"""Side of the square whose area pictures have, whatever their shape."""
SHAPES = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16), (21, 9))
"""Width to height of the authors' sizes."""
BASE = "Emu3.5"
"""The published name of the model that was not tuned for pictures, which wants less guidance."""


class Emu35Config(Qwen3Config):  # type: ignore[misc]
    """The authors' ``configuration_emu3.py``: Qwen3's fields with other defaults, and tokens' ids.

    Transformers knows it from the import of this module on.
    """

    model_type = "Emu3"
    default_theta = 1_000_000.0
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 9_216
    rms_norm_eps: float = 1e-5
    eol_token_id: int = 151_846
    eoi_token_id: int = 151_853

    @property
    def image_ids(self) -> range:
        """Ids of the image tokens, by code: all behind the token that ends a picture."""
        return range(self.eoi_token_id + 1, self.vocab_size)


AutoConfig.register(Emu35Config.model_type, Emu35Config, exist_ok=True)


class Emu35Model:
    """Prompts that tell the picture's rows and columns; pixels by the IBQ tokenizer's decoder."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        config = checkpoint.parse_config(Emu35Config)
        self.spec = self.read_spec(checkpoint)
        with checkpoint.finding():
            ids = special_ids(checkpoint)
            first, last = (VISUAL.format(code=code) for code in (0, len(config.image_ids) - 1))
            for token, needed in (
                (ROW_TERMINATOR, config.eol_token_id),
                (first, config.image_ids[0]),
                (last, config.image_ids[-1]),
            ):
                if ids.get(token) != needed:
                    raise checkpoint.error(
                        f"{VISION_TOKENS} and config.json differ in the id of {token}", SAME_SOURCE
                    )
            self._tokenizer = read_tokenizer(checkpoint, ids)
        whole = checkpoint.build(Qwen3ForCausalLM, config)
        with checkpoint.finding():
            checkpoint.check({name: tensor.shape for name, tensor in whole.state_dict().items()})
        self._decoder = _load_decoder(checkpoint, len(config.image_ids), device)
        self._device = device

    @staticmethod
    def read_spec(checkpoint: Checkpoint) -> ImageModelSpec:
        """The facts of its ``config.json``, and of its name.

        Nobody has published a window: it is the share of a row that ZipAR's 7 of 90 is for Emu3
        (arXiv 2412.04062).
        """
        config = checkpoint.parse_config(Emu35Config)
        if config.vocab_size == EMU3_VOCABULARY:
            raise checkpoint.error(
                "an Emu3 in its authors' layout cannot be served: convert it first, by zipar "
                "convert",
                "zipar convert",
            )
        if not config.image_ids:
            raise checkpoint.error(
                f"config.json: vocab_size is {config.vocab_size}, image tokens begin at "
                f"{config.image_ids.start}"
            )
        sizes = AnySizes(
            listed=_listed(checkpoint.config.get("target_size", TARGET_SIZE)),
            factor=FACTOR,
            max_positions=config.max_position_embeddings,
            row_terminator=True,
        )
        default = next(iter(sizes.listed.values()))
        return ImageModelSpec(
            family="emu3.5",
            vocabulary=Vocabulary(
                first_id=config.image_ids.start,
                num_codes=len(config.image_ids),
                row_terminator=config.eol_token_id,
                first_column=0,
            ),
            sizes=sizes,
            defaults=ImageOptions(
                window=max(round(default.columns * 7 / 90), 1),
                guidance_scale=2.0 if Path(checkpoint.model).name == BASE else 5.0,
                temperature=1.0,
                top_k=5120,
                top_p=1.0,
            ),
            max_prompt_tokens=sizes.max_positions - default.num_positions,
        )

    def prompts(self, text: str, negative: str | None, grid: Grid, guided: bool) -> Prompts:
        """Encode both lanes; without a negative prompt, the second has neither task nor text."""
        conditional = self._encode(TEMPLATE.format(text=text), grid)
        if not guided:
            return Prompts(conditional, [])
        other = UNCONDITIONAL if negative is None else TEMPLATE.format(text=negative)
        return Prompts(conditional, self._encode(other, grid))

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Render pictures: int64 ``[B, rows, columns]`` to uint8 ``[B, H, W, 3]``."""
        return render(self._decoder, codes.to(self._device))

    def _encode(self, prompt: str, grid: Grid) -> list[int]:
        prompt += begin_picture(grid)
        ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        return ids


def _listed(target: int) -> dict[str, Grid]:
    """The authors' sizes of an area: theirs to the token, of ratios with two digits."""
    listed = {}
    for width, height in SHAPES:
        ratio, tokens = round(width / height, 2), (target / FACTOR) ** 2
        grid = Grid(int((tokens / ratio) ** 0.5), int((tokens * ratio) ** 0.5), row_terminator=True)
        listed[f"{grid.columns * FACTOR}x{grid.rows * FACTOR}"] = grid
    return listed


def _load_decoder(checkpoint: Checkpoint, num_codes: int, device: torch.device) -> VQGANDecoder:
    """The pixel decoder, of a checkpoint of its own."""
    vision = vision_tokenizer(checkpoint, VISION_TOKENIZER)
    layers: dict[str, Any] = vision.config
    try:
        with torch.device("meta"):
            decoder = VQGANDecoder(layers, layers["codebook_size"], layers["embed_dim"])
    except KeyError as error:
        raise vision.error(f"config.json lacks {error.args[0]}") from None
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise vision.error(f"config.json: {' '.join(str(error).split())}") from None
    for name, found, needed in (
        ("codes", decoder.num_codes, num_codes),
        ("pixels per token", decoder.factor, FACTOR),
    ):
        if found != needed:
            raise vision.error(f"it has {found} {name}, {checkpoint.model} {needed}", SAME_SOURCE)
    vision.load(decoder, "", device)
    return decoder
