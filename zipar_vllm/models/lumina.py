"""Lumina-mGPT 7B (arXiv 2408.02657), ``Alpha-VLLM/Lumina-mGPT-7B-512``, -768 and -1024.

Template, sizes, guidance and sampling are those of the authors' ``README.md``,
``inference_solver.py`` and ``data/item_processor.py`` (github.com/Alpha-VLLM/Lumina-mGPT). Three
things are otherwise: the tokens that begin a picture and tell its size are given, where the
authors sample them; a negative prompt, which they do not have, is phrased as a prompt is; and what
they leave out of a checkpoint is looked for where they have it on the hub (:data:`TOKENIZER`,
:data:`CHAMELEON`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.params import ImageOptions

from .base import ImageModelSpec, Prompts
from .checkpoint import SAME_SOURCE, Checkpoint
from .sizes import FixedSizes
from .tiles import render
from .vqgan import VQGANDecoder, load_vqgan

TEMPLATE = "Generate an image of {size} according to the following prompt:\n{text}{end}"
BEGIN, END_OF_TURN = "<s>", "<reserved08706>"
BEGIN_OF_IMAGE, ROW_TERMINATOR = "<racm3:break>", "<reserved08799>"
SIDE = "<reserved{:05d}>"
"""A side of the picture, counted in patches from :data:`SIDE_ZERO` on."""
SIDE_ZERO = 8800
PATCH = 2
"""Tokens per patch, each way: a picture is cropped to whole patches."""
LONGEST = 4
"""The longer side of a picture is at most so many times the shorter."""
SHAPES = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))
"""Width to height of the sizes worth naming."""

IMAGE_TOKEN = re.compile(r"IMGIMG([A-J]+)Z")
"""An image token's name: its code, each digit a letter."""
DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")

NAMED = re.compile(r"Lumina-mGPT-\d+B-(\d+)", re.IGNORECASE)
"""A checkpoint's published name, which tells the side of the squares it was trained on."""
TOKENIZER = "Alpha-VLLM/Lumina-mGPT-7B-768"
"""The checkpoint that has a ``tokenizer.json``; the authors use it for all."""
CHAMELEON = "Alpha-VLLM/Chameleon_7B_mGPT"
"""Where the authors point to for Chameleon's VQGAN (github.com/Alpha-VLLM/Lumina-mGPT/issues/22).
"""
PIXELS = ("original_tokenizers/vqgan.yaml", "original_tokenizers/vqgan.ckpt")

NOT_NEEDED = "model.vqmodel."
NORMS = (".q_norm.weight", ".q_norm.bias", ".k_norm.weight", ".k_norm.bias")


@dataclass(frozen=True, slots=True)
class CropSizes:
    """The authors' crop sizes: all of about one area whose sides are whole patches.

    Attributes:
        listed: Those worth naming and their grids, the default first.
        every: All of them.
        step: Pixels per patch, each way.
    """

    listed: Mapping[str, Grid]
    every: FixedSizes
    step: int

    @property
    def allowed(self) -> str:
        return (
            f"auto or one of {len(self.every.listed)} sizes in steps of {self.step} pixels, all of "
            f"about the same area, such as {' or '.join(self.listed)}"
        )

    def grid(self, size: str) -> Grid | None:
        return self.every.grid(size)

    def nearest(self, size: str) -> str | None:
        return self.every.nearest(size)


class LuminaModel:
    """Prompts in the authors' template; pixels by Chameleon's VQGAN."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        config = checkpoint.parse_config(ChameleonConfig)
        self.spec = self.read_spec(checkpoint)
        self._factor, self._device = _factor(config), device
        with checkpoint.finding():
            self._tokenizer = Tokenizer.from_file(str(_tokenizer_file(checkpoint)))
            sizes = _sizes(checkpoint, self._factor)
            sides = {side for grid in sizes.every.listed.values() for side in _sides(grid)}
            names = (BEGIN, END_OF_TURN, BEGIN_OF_IMAGE, *map(_side_token, sorted(sides)))
            self._ids = {name: config.vocabulary_map.get(name) for name in names}
            for name, token_id in self._ids.items():
                if token_id is None or self._tokenizer.token_to_id(name) != token_id:
                    raise checkpoint.error(
                        f"tokenizer.json and config.json differ in the id of {name}", SAME_SOURCE
                    )
        with checkpoint.finding():
            checkpoint.check(_tensors(checkpoint, config))
        self._decoder = _load_decoder(checkpoint, self.spec.vocabulary, self._factor, device)

    @staticmethod
    def read_spec(checkpoint: Checkpoint) -> ImageModelSpec:
        """The facts of its ``config.json``, and of its name.

        The window is ZipAR's for Lumina-mGPT, 15 of 48 (arXiv 2412.04062).
        """
        config = checkpoint.parse_config(ChameleonConfig)
        if config.swin_norm:
            raise checkpoint.error(
                "config.json: swin_norm is true, which the 34B model has alone",
                "take the 7B model of the same size",
            )
        ids = config.vocabulary_map or {}
        try:
            image = image_ids(ids)
        except ValueError as error:
            raise checkpoint.error(f"config.json: vocabulary_map {error}") from None
        if ROW_TERMINATOR not in ids:
            raise checkpoint.error(f"config.json: vocabulary_map has no {ROW_TERMINATOR}")
        sizes = _sizes(checkpoint, _factor(config))
        longest = max(grid.num_positions for grid in sizes.every.listed.values())
        if longest >= config.max_position_embeddings:
            raise checkpoint.error(
                f"config.json: max_position_embeddings is {config.max_position_embeddings}, "
                f"a picture has up to {longest} tokens"
            )
        return ImageModelSpec(
            family="lumina-mgpt",
            vocabulary=Vocabulary(
                first_id=image.start,
                num_codes=len(image),
                row_terminator=ids[ROW_TERMINATOR],
                first_column=0,
            ),
            sizes=sizes,
            defaults=ImageOptions(
                window=max(next(iter(sizes.listed.values())).columns * 15 // 48, 1),
                guidance_scale=4.0,
                temperature=1.0,
                top_k=2000,
                top_p=1.0,
            ),
            max_prompt_tokens=config.max_position_embeddings - longest,
        )

    def prompts(self, text: str, negative: str | None, grid: Grid, guided: bool) -> Prompts:
        """Encode both lanes; without a negative prompt, the second one begins with the picture."""
        conditional = self._encode(text, grid)
        if not guided:
            return Prompts(conditional, [])
        if negative is not None:
            return Prompts(conditional, self._encode(negative, grid))
        return Prompts(conditional, self._begin_picture(grid))

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Render pictures: int64 ``[B, rows, columns]`` to uint8 ``[B, H, W, 3]``."""
        return render(self._decoder, codes.to(self._device))

    def _encode(self, text: str, grid: Grid) -> list[int]:
        size = f"{grid.columns * self._factor}x{grid.rows * self._factor}"
        prompt = TEMPLATE.format(size=size, text=text, end=END_OF_TURN)
        ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        return [self._ids[BEGIN], *ids, *self._begin_picture(grid)]

    def _begin_picture(self, grid: Grid) -> list[int]:
        rows, columns = _sides(grid)
        return [
            self._ids[name] for name in (BEGIN_OF_IMAGE, _side_token(rows), _side_token(columns))
        ]


def image_ids(vocabulary_map: Mapping[str, int]) -> range:
    """The ids of the image tokens, by code.

    Args:
        vocabulary_map: Id by name, as a Chameleon's ``config.json`` has them.

    Raises:
        ValueError: there are none, or their ids are not in the order of their codes.
    """
    found = {
        int(match[1].translate(DIGITS)): token_id
        for name, token_id in vocabulary_map.items()
        if (match := IMAGE_TOKEN.fullmatch(name))
    }
    first = found.get(0, 0)
    ids = range(first, first + len(found))
    if not found or [found.get(code) for code in range(len(found))] != list(ids):
        raise ValueError(f"has {len(found)} image tokens, or some are missing, or their order")
    return ids


def _factor(config: Any) -> int:
    """Pixels per token, each way."""
    return int(2 ** (len(config.vq_config.channel_multiplier) - 1))


def _sides(grid: Grid) -> tuple[int, int]:
    """Height and width in patches."""
    return grid.rows // PATCH, grid.columns // PATCH


def _side_token(patches: int) -> str:
    return SIDE.format(SIDE_ZERO + patches)


def _sizes(checkpoint: Checkpoint, factor: int) -> CropSizes:
    """The crop sizes of the area that a checkpoint was trained on.

    They are those where one patch more in both sides would be too many.
    """
    named = NAMED.search(checkpoint.model)
    target = int(checkpoint.config.get("target_size") or (named[1] if named else 0))
    if not target:
        raise checkpoint.error(
            "neither its name (such as Lumina-mGPT-7B-768) nor target_size in config.json tells "
            "for which size it was trained: 512, 768 or 1024",
            'name the folder so, or put "target_size" into config.json',
        )
    step = PATCH * factor
    patches = (target // step) ** 2
    shapes = [
        (width, height)
        for width in range(1, patches + 1)
        for height in range(1, patches // width + 1)
        if (width + 1) * (height + 1) > patches
        and max(width, height) <= LONGEST * min(width, height)
    ]
    every = FixedSizes(
        {
            f"{width * step}x{height * step}": Grid(PATCH * height, PATCH * width, True)
            for width, height in sorted(shapes, key=lambda shape: (abs(shape[0] - shape[1]), shape))
        }
    )
    wanted = (every.nearest(f"{w * target}x{h * target}") or "" for w, h in SHAPES)
    return CropSizes({size: every.listed[size] for size in wanted}, every, step)


def _tokenizer_file(checkpoint: Checkpoint) -> Path:
    name = "tokenizer.json"
    path = checkpoint.find(name) or Checkpoint(TOKENIZER).find(name)
    if path is None:
        raise checkpoint.error(
            f"{name} is missing; take that of {TOKENIZER}, which fits all sizes", "copy it there"
        )
    return path


def _load_decoder(
    checkpoint: Checkpoint, vocabulary: Vocabulary, factor: int, device: torch.device
) -> VQGANDecoder:
    """The pixel decoder in the checkpoint's folder, else in the authors' repository on the hub."""
    for place in (checkpoint, Checkpoint(CHAMELEON)):
        options, weights = (place.find(name) for name in PIXELS)
        if options is not None and weights is not None:
            break
    else:
        raise checkpoint.error(
            f"{' or '.join(PIXELS)} is missing; take both from Meta's Chameleon or from "
            f"{CHAMELEON} on the hub",
            "copy them there",
        )
    try:
        decoder = load_vqgan(options, weights, device)
    except ValueError as error:
        raise checkpoint.error(str(error)) from None
    for name, found, needed in (
        ("codes", decoder.num_codes, vocabulary.num_codes),
        ("pixels per token", decoder.factor, factor),
    ):
        if found != needed:
            raise checkpoint.error(
                f"{options.name} has {found} {name}, config.json {needed}", SAME_SOURCE
            )
    return decoder


def _tensors(checkpoint: Checkpoint, config: Any) -> dict[str, torch.Size]:
    """Shapes of the transformer's tensors; its norms are stored once for all heads of a shard."""
    whole = checkpoint.build(ChameleonForConditionalGeneration, config)
    return {
        name: torch.Size([config.model_parallel_size, tensor.shape[-1]])
        if name.endswith(NORMS)
        else tensor.shape
        for name, tensor in whole.state_dict().items()
        if not name.startswith(NOT_NEEDED)
    }
