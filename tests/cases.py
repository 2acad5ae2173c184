"""Images to decode, and what has to come out of each: shared by all who run tiny models."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.reference import decode_image
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.models.base import Prompts
from zipar_vllm.params import ImageParams
from zipar_vllm.prepare import ADAPTIVE, PreparedImage

PROMPT = [1, 7, 12, 9, 2]
NEGATIVE = [1, 4, 2]


def make_image(
    terminated: bool,
    rows: int = 8,
    columns: int = 8,
    *,
    prompt: list[int] | None = None,
    unconditional: list[int] | None = None,
    **params: Any,
) -> PreparedImage:
    """An image of a tiny model; greedy and in raster order unless ``params`` say otherwise."""
    params = {"temperature": 0.0, "window": columns, **params}
    return PreparedImage(
        size="tiny",
        grid=Grid(rows, columns, terminated),
        prompts=Prompts(prompt or PROMPT, unconditional or []),
        params=ImageParams(**params),
    )


def mixed_images(terminated: bool, adaptive: bool = False) -> list[tuple[int, PreparedImage]]:
    """Images that differ in all they can, each with the step of its arrival.

    With ``adaptive``, every other one has an adaptive window.
    """
    images = []
    shapes = [(8, 8), (6, 12), (10, 4), (8, 8), (1, 12), (10, 1), (6, 12), (8, 8)]
    for index, (rows, columns) in enumerate(shapes):
        guided = index % 2 == 1
        image = make_image(
            terminated,
            rows,
            columns,
            prompt=[1, *range(5, 6 + 3 * index), 2],
            unconditional=[1, *range(4, 4 + index), 2] if guided else [],
            window=min(columns, [1, 2, 4, 12][index % 4]),
            seed=index,
            temperature=0.0 if index % 3 else 0.7,
            guidance_scale=1.5 + index if guided else 1.0,
        )
        if adaptive and index % 4 in (0, 1):
            image = replace(image, params=replace(image.params, policy=ADAPTIVE))
        images.append((index * 3 // 2, image))
    return images


@cache
def hf_model(path: Path) -> torch.nn.Module:
    """The Hugging Face model of a folder, in float32."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def expected(
    path: Path, vocabulary: Vocabulary, image: PreparedImage, model: Any = None
) -> tuple[list[int], int]:
    """The reference decoder's tokens and its number of forward passes.

    ``model``: Instead of the Hugging Face model of the folder.
    """
    params = image.params
    result = decode_image(
        model or hf_model(path),
        image.prompts.conditional,
        image.grid,
        params.window,
        adaptive=params.policy == ADAPTIVE,
        image_tokens=(vocabulary.first_id, vocabulary.num_codes),
        row_terminator_id=vocabulary.row_terminator,
        unconditional_ids=image.prompts.unconditional,
        guidance_scale=params.guidance_scale,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
    )
    return result.tokens, result.num_forward_passes


def assert_diverse(tokens: list[int]) -> None:
    """A model that repeats itself would let a wrong mask pass."""
    assert len(set(tokens)) >= len(tokens) // 4
