"""What the engine and the server need to know of an image model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.params import ImageOptions


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a model reads before the first image token, by lane.

    Attributes:
        conditional: Token ids of the conditional lane.
        unconditional: Token ids of the unconditional lane, empty without guidance.
    """

    conditional: list[int]
    unconditional: list[int]


@dataclass(frozen=True, slots=True)
class ImageModelSpec:
    """The static facts of an image model, cheap to load in every process.

    Attributes:
        family: Name of the file in this package that knows the model.
        vocabulary: The numberings of its image tokens.
        grids: Token grid by size string (``"192x192"``: width x height in pixels).
        defaults: Options of a request that names none.
        max_prompt_tokens: Longest prompt of one lane, in tokens, special tokens included.
        details: Free-form facts for ``GET /v1/models`` (styles, concepts).
    """

    family: str
    vocabulary: Vocabulary
    grids: Mapping[str, Grid]
    defaults: ImageOptions
    max_prompt_tokens: int
    details: Mapping[str, object] = field(default_factory=dict)


class ImageModel(Protocol):
    """A model family's text side and pixel side (the transformer itself is vLLM's)."""

    @property
    def spec(self) -> ImageModelSpec: ...

    def prompts(self, text: str, negative: str | None, grid: Grid, guided: bool) -> Prompts:
        """Token ids of both lanes, up to where the first image token is predicted.

        Args:
            text: What to draw.
            negative: What guidance steers away from; None is the model's own empty prompt.
            grid: The picture's grid, which some models are told in the prompt.
            guided: Whether there is an unconditional lane.
        """
        ...

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Render pictures: int64 codes ``[B, rows, columns]`` to uint8 ``[B, H, W, 3]``."""
        ...
