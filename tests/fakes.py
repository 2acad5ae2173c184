"""Stand-ins for a model and an engine: what they are asked, and what they answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import torch

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.models.base import ImageModelSpec, Prompts
from zipar_vllm.models.sizes import FixedSizes
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import PreparedImage
from zipar_vllm.progress import ImageProgress


class FakeModel:
    """Two sizes; every token renders as a square of 8 x 8 pixels of its own grey."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.spec = ImageModelSpec(
            family="fake",
            vocabulary=Vocabulary(10, 16, 3),
            sizes=FixedSizes({"64x48": Grid(6, 8, True), "32x32": Grid(4, 4, True)}),
            defaults=ImageOptions(
                window=4, guidance_scale=2.0, temperature=0.5, top_k=5, top_p=1.0
            ),
            max_prompt_tokens=50,
            details={"concepts": ["apple"]},
        )

    def prompts(self, text: str, negative: str | None, grid: Grid, guided: bool) -> Prompts:
        return Prompts(self._encode(text), self._encode(negative or "") if guided else [])

    def _encode(self, text: str) -> list[int]:
        return [1, *range(len(text.split())), 2]

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(codes))
        grey = (codes * 10).to(torch.uint8)
        pixels = grey.repeat_interleave(8, 1).repeat_interleave(8, 2)
        return pixels.unsqueeze(-1).expand(-1, -1, -1, 3)


@dataclass
class FakeEngine:
    """Finishes a row per step; ``gate`` holds it before a row, ``error`` ends it there.

    Row 0 is the beginning of the picture. It tells of every row, or of ``rows_at_once`` together.
    Drafts change no picture, unless ``drafts_differ``.
    """

    images: list[PreparedImage] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    hold_at: int | None = None
    error: Exception | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    rows_at_once: int = 1
    drafts_differ: bool = False
    steps_taken: int = 0
    waiting: bool = False

    async def generate(
        self, request_id: str, image: PreparedImage
    ) -> AsyncGenerator[ImageProgress, None]:
        self.images.append(image)
        self.request_ids.append(request_id)
        grid = image.grid
        try:
            for row in range(grid.rows + 1):
                await asyncio.sleep(0)
                if self.hold_at == row:
                    if self.error is not None:
                        raise self.error
                    self.waiting = True
                    await self.gate.wait()
                self.steps_taken += row > 0
                if row % self.rows_at_once:
                    continue
                shade = image.params.seed % 7 + bool(self.drafts_differ and image.params.drafts)
                codes = [shade] * (row * grid.columns)
                last = row == grid.rows
                yield ImageProgress(
                    codes=codes,
                    complete_rows=row,
                    finished=last,
                    steps=99 if last else None,
                    accepted_drafts=0.5 if last and image.params.drafts else None,
                    queue_seconds=0.25,
                )
        finally:
            self.closed.append(request_id)
