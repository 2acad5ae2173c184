"""Device state of running images: their tokens, what is written, where their blocks lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zipar_vllm.core.adaptive import AdaptiveFrontier, AdaptiveStep
from zipar_vllm.models.base import ImageTokens

from .job import ImageJob

MAX_LANES = 2


@dataclass(slots=True)
class ImageState:
    """A running image.

    Attributes:
        row: Its row in :class:`StateTable`.
        job: What it decodes.
        frontier: Where an image under an adaptive window stands; None under a fixed one.
        prefilled: Prompt tokens computed so far, over all lanes.
        released: Rows handed to vLLM so far.
    """

    row: int
    job: ImageJob
    frontier: AdaptiveFrontier | None = None
    prefilled: int = 0
    released: int = 0

    @classmethod
    def of(cls, row: int, job: ImageJob) -> ImageState:
        """An image that has not begun."""
        plan = job.plan
        frontier = AdaptiveFrontier(plan.grid, plan.window) if job.params.adaptive else None
        return cls(row, job, frontier)

    def step(self, step: int) -> AdaptiveStep:
        """What decoding step ``step`` feeds; a fixed window opens no row by trial."""
        if self.frontier is None:
            return AdaptiveStep(self.job.plan.steps[step], attempt=None)
        return self.frontier.step()

    def completed_rows(self, step: int) -> int:
        """Rows whose tokens are all decoded, from the top, once ``step`` is done."""
        if self.frontier is None:
            return self.job.plan.completed_rows[step]
        return self.frontier.completed_rows

    def lane(self, index: int) -> int:
        """Row of one of its lanes in the lane tables."""
        return self.row * MAX_LANES + index


class StateTable:
    """Rows of fixed size for up to ``max_images`` images, on the model's device.

    Attributes:
        tokens: int64 ``[max_images, max_tokens]``: an image's prompts, then its raster buffer.
        written: bool ``[max_images * MAX_LANES, max_blocks * block_size]``: slots that hold a key.
        block_table: int64 ``[max_images * MAX_LANES, max_blocks]``.
        options: Sampling options by image row, on the host.
        openings: float32 ``[max_images, image tokens]``: the distribution that the candidate for
            the first token of a row was drawn from, where the window is adaptive.
    """

    def __init__(
        self,
        max_images: int,
        max_tokens: int,
        block_size: int,
        image_tokens: ImageTokens,
        device: torch.device,
    ) -> None:
        self._device = device
        self._image_tokens = image_tokens
        self._free = list(range(max_images - 1, -1, -1))
        self._images: dict[str, ImageState] = {}
        self.block_size = block_size
        max_blocks = -(-max_tokens // block_size)
        lanes = max_images * MAX_LANES
        self.tokens = torch.zeros(max_images, max_tokens, dtype=torch.int64, device=device)
        self.written = torch.zeros(lanes, max_blocks * block_size, dtype=torch.bool, device=device)
        self.block_table = torch.zeros(lanes, max_blocks, dtype=torch.int64, device=device)
        self.options = SamplingOptions(max_images)
        self.openings = torch.zeros(max_images, image_tokens.count, device=device)

    def __getitem__(self, request_id: str) -> ImageState:
        return self._images[request_id]

    def __len__(self) -> int:
        return len(self._images)

    def add(self, request_id: str, job: ImageJob, prompt: list[int], blocks: list[int]) -> None:
        """Take in an image with its concatenated prompts and its KV blocks, lane after lane."""
        image = ImageState.of(self._free.pop(), job)
        self._images[request_id] = image
        row, length = image.row, len(prompt)
        grid = job.plan.grid
        self.tokens[row, :length] = torch.tensor(prompt, device=self._device)
        if self._image_tokens.row_terminator is not None:
            raster = self.tokens[row, length : length + grid.num_slots]
            raster.view(grid.rows, grid.stride)[:, grid.columns] = self._image_tokens.row_terminator
        start = 0
        for index, count in enumerate(job.lane_blocks(self.block_size)):
            lane = image.lane(index)
            self.written[lane] = False
            self.block_table[lane, :count] = torch.tensor(
                blocks[start : start + count], device=self._device
            )
            # Blocks past the lane's end are gathered too, and masked: any valid one will do.
            self.block_table[lane, count:] = blocks[start]
            start += count
        self.options.set(row, job)

    def remove(self, request_id: str) -> None:
        """Forget an image; unknown ids are ignored (an image may end before it started)."""
        image = self._images.pop(request_id, None)
        if image is not None:
            self._free.append(image.row)


class SamplingOptions:
    """Sampling options by image row, as host arrays that a whole batch indexes at once."""

    def __init__(self, max_images: int) -> None:
        self.temperature: NDArray[np.float32] = np.zeros(max_images, dtype=np.float32)
        self.top_k: NDArray[np.int64] = np.zeros(max_images, dtype=np.int64)
        self.top_p: NDArray[np.float32] = np.ones(max_images, dtype=np.float32)
        self.seed: NDArray[np.int64] = np.zeros(max_images, dtype=np.int64)
        self.guidance_scale: NDArray[np.float32] = np.ones(max_images, dtype=np.float32)

    def set(self, row: int, job: ImageJob) -> None:
        """Take over a request's options."""
        params = job.params
        self.temperature[row] = params.temperature
        self.top_k[row] = params.top_k
        self.top_p[row] = params.top_p
        self.seed[row] = params.seed
        self.guidance_scale[row] = params.guidance_scale
