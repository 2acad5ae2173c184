"""One image as the engine sees it: its lanes, its KV demand and the policy of its steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zipar_vllm.core.grid import Grid
from zipar_vllm.params import ImageParams

from .policy import IntArray, Policy, make_policy
from .scoring import scoring


@dataclass(frozen=True, slots=True)
class ImageJob:
    """A checked image request; small, because it travels from the scheduler to every rank.

    A lane is a sequence of KV slots: the conditional one and, under guidance, the unconditional
    one. Both hold their own prompt and then the picture, whose tokens they share.

    Attributes:
        grid: The picture's grid.
        params: How it is decoded.
        lane_prompts: Prompt length of each lane; the request's prompt is their concatenation.
        logprobs: Whether the log-probabilities of its tokens are wanted.
        picture: Codes of a finished picture, if it is to be scored instead of drawn.
    """

    grid: Grid
    params: ImageParams
    lane_prompts: tuple[int, ...]
    logprobs: bool = False
    picture: tuple[int, ...] = ()

    @property
    def policy(self) -> Policy:
        """The policy that orders its tokens; one object per process serves all such images."""
        return scoring(self.grid) if self.picture else make_policy(self.grid, self.params)

    @property
    def num_lanes(self) -> int:
        """2 with classifier-free guidance, else 1."""
        return len(self.lane_prompts)

    @property
    def prompt_length(self) -> int:
        """Prompt tokens of all lanes."""
        return sum(self.lane_prompts)

    @property
    def num_tokens(self) -> int:
        """Tokens of the image's row in the state table: all prompts, then the picture."""
        return self.prompt_length + self.grid.num_positions

    @property
    def max_inputs(self) -> int:
        """Inputs of the widest decoding step, all lanes."""
        return self.num_lanes * self.policy.max_inputs

    def lane_blocks(self, block_size: int) -> tuple[int, ...]:
        """KV blocks of each lane; a lane starts on a block of its own."""
        picture = self.grid.num_positions
        return tuple(-(-(prompt + picture) // block_size) for prompt in self.lane_prompts)

    def num_blocks(self, block_size: int) -> int:
        """KV blocks of the whole image: its exact demand, known before it starts."""
        return sum(self.lane_blocks(block_size))

    def block_steps(self, block_size: int) -> IntArray:
        """The first step that may write to each of its KV blocks: int64 ``[num_blocks]``.

        Lane after lane. A block is needed from then on until the image ends, as later rows see all
        earlier ones. Where it is not known beforehand what a step feeds, all may be needed by the
        first; and a picture to score is fed faster than its orders tell.
        """
        policy = self.policy
        orders, num_steps = policy.orders, policy.num_steps
        steps = []
        for prompt, count in zip(self.lane_prompts, self.lane_blocks(block_size), strict=True):
            first = np.zeros(count * block_size, dtype=np.int64)
            if orders is not None and num_steps is not None and not self.picture:
                first[prompt:] = num_steps - 1  # some blocks have no position that is ever fed
                first[prompt : prompt + len(orders)] = np.minimum(orders, num_steps - 1)
            steps.append(first.reshape(count, block_size).min(axis=1))
        return np.concatenate(steps)
