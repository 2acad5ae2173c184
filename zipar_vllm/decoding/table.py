"""State of running images: their tokens, what counts as known, where their keys lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.sampling import OPTION_DTYPES, SamplingFlags
from zipar_vllm.core.transfer import to_device
from zipar_vllm.core.visibility import UNWRITTEN
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.models.base import Positions

from .job import ImageJob
from .policy import DraftingProgress, IntArray, Progress, Verification

MAX_LANES = 2


@dataclass(slots=True)
class ImageState:
    """A running image.

    Attributes:
        index: Its place in :class:`StateTable`.
        job: What it decodes.
        progress: Where its policy stands.
        drafting: The same, if its steps can look ahead.
        verification: Decides on its drafts, if its policy makes any.
        has_orders: Whether the orders of all its positions are in the table from the start.
        flags: What its sampling asks for.
        first_token: Where its row of tokens begins among all rows, one after the other.
        prompt_length: Prompt tokens of all lanes.
        slots: KV slot of every position, by lane.
        model_positions: What the model calls every position, by lane; None if it calls them so too.
        grid_positions: Place in the grid of every position of the picture.
        embeddings: What is fed in place of its prompts' ids; None if the ids are.
        prefilled: Prompt tokens computed so far, over all lanes.
        released: Rows handed to vLLM so far.
    """

    index: int
    job: ImageJob
    progress: Progress
    drafting: DraftingProgress | None
    verification: type[Verification] | None
    has_orders: bool
    flags: SamplingFlags
    first_token: int
    prompt_length: int
    slots: tuple[IntArray, ...]
    model_positions: tuple[IntArray, ...] | None
    grid_positions: IntArray
    embeddings: torch.Tensor | None = None
    prefilled: int = 0
    released: int = 0

    @property
    def is_prefilled(self) -> bool:
        """Whether its prompts are computed, so that its first token is drawn."""
        return self.prefilled == self.prompt_length

    @property
    def is_foreseen(self) -> bool:
        """Whether its next steps depend on no draw."""
        if self.drafting is not None:
            return self.drafting.is_plain
        return self.has_orders and self.verification is None

    @property
    def picture_start(self) -> int:
        """Where its picture begins among all rows of tokens."""
        return self.first_token + self.prompt_length

    def lane(self, number: int) -> int:
        """Index of one of its lanes in the lane tables."""
        return self.index * MAX_LANES + number


class StateTable:
    """State of fixed size for up to ``max_images`` images; tensors are on the model's device.

    Attributes:
        tokens: int64 ``[max_images, max_tokens]``: an image's prompts, then its picture.
        orders: int32 ``[max_images * MAX_LANES, max_blocks * block_size]``: order of the token in
            each slot, ``UNWRITTEN`` where there is none.
        flat_orders: The same in one row, and an element more, which nobody reads.
        has_model_positions: Whether the model's positions differ from places in the lane.
        block_table: int64 ``[max_images * MAX_LANES, max_blocks]``.
        scores: float32 ``[max_images, max_tokens, 2]``: log-probability of each token and its rank,
            1 or more, where they are wanted; None until an image wants them.
        options: Options of each image, host arrays ``[max_images]`` by name: what its tokens are
            sampled by, and ``guidance_scale``.
    """

    def __init__(
        self,
        max_images: int,
        max_tokens: int,
        block_size: int,
        vocabulary: Vocabulary,
        device: torch.device,
        positions: Positions | None = None,
    ) -> None:
        self._device = device
        self._positions = positions
        self._vocabulary = vocabulary
        self._free = list(range(max_images - 1, -1, -1))
        self._images: dict[str, ImageState] = {}
        self.has_model_positions = positions is not None
        self.max_images = max_images
        self.block_size = block_size
        max_blocks = -(-max_tokens // block_size)
        lanes, slots = max_images * MAX_LANES, max_blocks * block_size
        self.tokens = torch.zeros(max_images, max_tokens, dtype=torch.int64, device=device)
        self.flat_orders = torch.full(
            (lanes * slots + 1,), UNWRITTEN, dtype=torch.int32, device=device
        )
        self.orders = self.flat_orders[:-1].view(lanes, slots)
        self.block_table = torch.zeros(lanes, max_blocks, dtype=torch.int64, device=device)
        self.scores: torch.Tensor | None = None
        self.options: dict[str, NDArray[Any]] = {
            name: np.zeros(max_images, dtype=dtype)
            for name, dtype in {**OPTION_DTYPES, "guidance_scale": np.float32}.items()
        }

    def __getitem__(self, request_id: str) -> ImageState:
        return self._images[request_id]

    def __len__(self) -> int:
        return len(self._images)

    def add(
        self,
        request_id: str,
        job: ImageJob,
        prompt: list[int],
        blocks: list[int],
        embeddings: torch.Tensor | None = None,
    ) -> None:
        """Take in an image with its concatenated prompts and its KV blocks, lane after lane."""
        index, policy = self._free.pop(), job.policy
        progress = policy.start()
        for name, values in self.options.items():
            values[index] = getattr(job.params, name)
        own_options = {name: self.options[name][index : index + 1] for name in OPTION_DTYPES}
        lanes = self._split(job, blocks)
        image = ImageState(
            index=index,
            job=job,
            progress=progress,
            drafting=cast(DraftingProgress, progress) if job.params.drafts else None,
            verification=policy.verification,
            has_orders=policy.orders is not None,
            flags=SamplingFlags.of(own_options),
            first_token=index * self.tokens.shape[1],
            prompt_length=job.prompt_length,
            slots=tuple(self._slots(own) for own in lanes),
            model_positions=self._model_positions(job),
            grid_positions=_grid_positions(job.grid),
            embeddings=None if embeddings is None else to_device(embeddings, self._device),
        )
        self._images[request_id] = image
        arrival = _Arrival(self)
        self._lay_tokens(arrival.tokens, image, prompt)
        self._lay_lanes(arrival, image, lanes, policy.orders)
        arrival.write(self, index)
        if job.logprobs:
            self._set_scores(image)

    def remove(self, request_id: str) -> None:
        """Forget an image; unknown ids are ignored (an image may end before it started)."""
        image = self._images.pop(request_id, None)
        if image is not None:
            self._free.append(image.index)

    def allocate_scores(self) -> torch.Tensor:
        """The scores, from now on there."""
        if self.scores is None:
            self.scores = torch.zeros(*self.tokens.shape, 2, device=self._device)
        return self.scores

    def _split(self, job: ImageJob, blocks: list[int]) -> list[IntArray]:
        """The image's blocks by lane."""
        counts = job.lane_blocks(self.block_size)
        return np.split(np.array(blocks, dtype=np.int64), np.cumsum(counts)[:-1])

    def _slots(self, blocks: IntArray) -> IntArray:
        """The KV slots of a lane's positions."""
        return (blocks[:, None] * self.block_size + np.arange(self.block_size)).ravel()

    def _model_positions(self, job: ImageJob) -> tuple[IntArray, ...] | None:
        if self._positions is None:
            return None
        return tuple(self._positions(job.grid, prompt) for prompt in job.lane_prompts)

    def _lay_tokens(self, tokens: IntArray, image: ImageState, prompt: list[int]) -> None:
        grid, length = image.job.grid, len(prompt)
        tokens[:length] = prompt
        rows = tokens[length : image.job.num_tokens].reshape(grid.rows, grid.stride)
        if self._vocabulary.row_terminator is not None:
            rows[:, grid.columns] = self._vocabulary.row_terminator
        if image.job.picture:
            ids = self._vocabulary.ids(torch.tensor(image.job.picture))
            rows[:, : grid.columns] = ids.view(grid.rows, grid.columns).numpy()

    def _lay_lanes(
        self,
        arrival: _Arrival,
        image: ImageState,
        lanes: list[IntArray],
        orders: NDArray[np.int32] | None,
    ) -> None:
        """Orders of prompt and picture may stand before their keys do.

        A prompt's keys are computed in raster order, and a key of the picture in the step that is
        its order, so that no query whose limit reaches it comes before it is there.
        """
        arrival.orders[:] = UNWRITTEN
        for number, (own, prompt) in enumerate(zip(lanes, image.job.lane_prompts, strict=True)):
            known = arrival.orders[number]
            known[:prompt] = 0
            if orders is not None:
                known[prompt : prompt + len(orders)] = orders
            # Blocks past the lane's end are gathered too, and masked: any valid one will do.
            blocks = arrival.blocks[number]
            blocks[:] = own[0]
            blocks[: len(own)] = own

    def _set_scores(self, image: ImageState) -> None:
        """A token that is not sampled, as a terminator, is certain."""
        scores = self.allocate_scores()
        scores[image.index, :, 0].fill_(0)
        scores[image.index, :, 1].fill_(1)


class _Arrival:
    """What the table is told of a new image, in one piece of memory: one copy brings it there.

    Attributes:
        tokens: int64 ``[max_tokens]``.
        blocks: int64 ``[MAX_LANES, max_blocks]``.
        orders: int32 ``[MAX_LANES, max_blocks * block_size]``.
    """

    def __init__(self, table: StateTable) -> None:
        slots = MAX_LANES * table.orders.shape[1] // 2  # two of int32 take as much as one of int64
        counts = [table.tokens.shape[1], MAX_LANES * table.block_table.shape[1], slots]
        self._words = np.zeros(sum(counts), dtype=np.int64)
        self._stops = np.cumsum(counts)[:-1].tolist()
        tokens, blocks, orders = np.split(self._words, self._stops)
        self.tokens: IntArray = tokens
        self.blocks: IntArray = blocks.reshape(MAX_LANES, -1)
        self.orders: NDArray[np.int32] = orders.view(np.int32).reshape(MAX_LANES, -1)

    def write(self, table: StateTable, index: int) -> None:
        """Write it into an image's rows; the host does not wait."""
        words = to_device(self._words, table.tokens.device)
        tokens, blocks, orders = words.tensor_split(self._stops)
        lanes = slice(index * MAX_LANES, (index + 1) * MAX_LANES)
        table.tokens[index] = tokens
        table.block_table[lanes] = blocks.view(MAX_LANES, -1)
        table.orders[lanes] = orders.view(torch.int32).view(MAX_LANES, -1)


@lru_cache(maxsize=64)
def _grid_positions(grid: Grid) -> IntArray:
    """``row * columns + column`` of every position; a terminator's is never asked for."""
    positions = np.arange(grid.num_positions)
    return positions // grid.stride * grid.columns + positions % grid.stride
