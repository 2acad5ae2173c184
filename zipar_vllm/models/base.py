"""What the engine and the server need to know of an image model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.params import ImageOptions

from .checkpoint import Checkpoint
from .sizes import Sizes

Positions = Callable[[Grid, int], NDArray[np.int64]]
"""The positions that a model gives a lane's tokens, by the picture's grid and the prompt's length.

int64 ``[prompt + picture]``. Keys lie in the lane one after the other whatever these say.
"""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a model reads before the first image token, by lane.

    Attributes:
        conditional: Token ids of the conditional lane.
        unconditional: Token ids of the unconditional lane, empty without guidance.
        embeddings: Where a model reads no ids: ``[tokens, width]``, what it reads, the conditional
            lane's first; the ids then only count. None of a model that reads ids.
    """

    conditional: list[int]
    unconditional: list[int]
    embeddings: torch.Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ImageModelSpec:
    """The static facts of an image model, cheap to load in every process.

    Attributes:
        family: Its name.
        vocabulary: The numberings of its image tokens.
        sizes: The pictures it draws, and their grids.
        defaults: Options of a request that names none.
        max_prompt_tokens: Longest prompt of one lane, in tokens, special tokens included.
        positions: Where the model's own positions differ from places in the lane; None if nowhere.
        embeds_prompts: Whether its prompts are embeddings.
        details: Free-form facts for ``GET /v1/models`` (styles, concepts).
    """

    family: str
    vocabulary: Vocabulary
    sizes: Sizes
    defaults: ImageOptions
    max_prompt_tokens: int
    positions: Positions | None = None
    embeds_prompts: bool = False
    details: Mapping[str, object] = field(default_factory=dict)

    @property
    def grids(self) -> Mapping[str, Grid]:
        """Token grid by size, of the sizes worth naming; the default first."""
        return self.sizes.listed


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


class ImageModelFamily(Protocol):
    """The class of a family's models: what the registry makes of a checkpoint."""

    def read_spec(self, checkpoint: Checkpoint) -> ImageModelSpec:
        """The static facts of a checkpoint; reads no weights.

        Raises:
            UnusableModelError: a file is missing, or is not what it should be.
        """
        ...

    def __call__(self, checkpoint: Checkpoint, device: torch.device) -> ImageModel:
        """Load a checkpoint's text and pixel side.

        Args:
            checkpoint: The checkpoint.
            device: Where it renders pixels; the meta device if it is to be checked only.

        Raises:
            UnusableModelError: something is missing or does not fit.
        """
        ...


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels as files have them: float ``[B, 3, H, W]`` in [-1, 1] to uint8 ``[B, H, W, 3]``."""
    shades = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return shades.permute(0, 2, 3, 1)
