"""What the engine and the server need to know of an image model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from zipar_vllm.core.grid import Grid


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """Where the picture's tokens lie in the model's vocabulary.

    Attributes:
        start: First image token id; image ids are contiguous.
        count: Number of image tokens (the codebook size).
        row_terminator: Id of the token that ends every row, or None.
    """

    start: int
    count: int
    row_terminator: int | None = None

    @property
    def stop(self) -> int:
        """One past the last image token id."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class ImageDefaults:
    """What a request gets that does not say otherwise, as in ``zipar_vllm.config.ImageParams``."""

    window: int
    guidance_scale: float
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True, slots=True)
class ImageModelSpec:
    """The static facts of an image model, cheap to load in every process.

    Attributes:
        family: Name of the file in this package that knows the model.
        tokens: Vocabulary layout.
        grids: Token grid by size string (``"192x192"``: width x height in pixels).
        defaults: Options of a request that names none.
        max_prompt_tokens: Longest prompt of one lane, in tokens, special tokens included.
        details: Free-form facts for ``GET /v1/models`` (styles, concepts).
    """

    family: str
    tokens: ImageTokens
    grids: Mapping[str, Grid]
    defaults: ImageDefaults
    max_prompt_tokens: int
    details: Mapping[str, object] = field(default_factory=dict)


class ImageModel(Protocol):
    """A model family's text side and pixel side (the transformer itself is vLLM's)."""

    @property
    def spec(self) -> ImageModelSpec: ...

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of the conditional lane, up to where the first image token is predicted."""
        ...

    def encode_unconditional(self, negative_prompt: str | None) -> list[int]:
        """Token ids of the unconditional lane; a negative prompt takes the empty one's place."""
        ...

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Draw pictures: int64 ``[B, rows, columns]`` in [0, count) to uint8 ``[B, H, W, 3]``."""
        ...
