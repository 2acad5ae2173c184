"""One image as the engine sees it: lanes, KV demand and the plan of its steps."""

from __future__ import annotations

from dataclasses import dataclass

from zipar_vllm.config import ImageParams, ImageParamsError
from zipar_vllm.core.frontier import Plan, make_plan
from zipar_vllm.models.base import ImageTokens

from .vllm_api import SamplingParams


@dataclass(frozen=True, slots=True)
class ImageJob:
    """A validated image request.

    A lane is a sequence of KV slots: the conditional one and, under guidance, the unconditional
    one. Both hold their own prompt and then the picture, whose tokens they share.

    Attributes:
        params: The request's options.
        plan: Ready sets of every step. Under an adaptive window the steps are other ones, found
            on the way (:class:`~zipar_vllm.core.adaptive.AdaptiveFrontier`), none of them wider.
        lane_prompts: Prompt length of each lane; the request's prompt is their concatenation.
    """

    params: ImageParams
    plan: Plan
    lane_prompts: tuple[int, ...]

    @classmethod
    def from_request(
        cls, prompt_length: int, sampling: SamplingParams | None, tokens: ImageTokens
    ) -> ImageJob:
        """Read an image off a vLLM request.

        Args:
            prompt_length: Tokens of the request's prompt, both lanes.
            sampling: The request's sampling parameters.
            tokens: The model's vocabulary layout.

        Raises:
            ImageParamsError: an option is missing or out of range.
        """
        params = ImageParams.from_extra_args(sampling.extra_args if sampling else None)
        grid = params.grid(tokens.row_terminator is not None)
        unconditional = params.unconditional_length
        if unconditional >= prompt_length:
            raise ImageParamsError(
                "unconditional_length",
                f"got {unconditional}, allowed is less than the prompt's {prompt_length} tokens",
            )
        if sampling is None or sampling.max_tokens != grid.num_slots:
            got = sampling.max_tokens if sampling else None
            raise ImageParamsError("max_tokens", f"got {got}, needed is {grid.num_slots}")
        if sampling.n != 1:
            raise ImageParamsError("n", f"got {sampling.n}, an image request has n = 1")
        lanes = (prompt_length - unconditional, unconditional)
        return cls(params, make_plan(grid, params.window), lanes[: params.num_lanes])

    @property
    def num_lanes(self) -> int:
        return len(self.lane_prompts)

    @property
    def prompt_length(self) -> int:
        """Prompt tokens of all lanes."""
        return sum(self.lane_prompts)

    @property
    def width(self) -> int:
        """Inputs of the widest decoding step, all lanes."""
        return self.num_lanes * self.plan.max_inputs

    def lane_blocks(self, block_size: int) -> tuple[int, ...]:
        """KV blocks of each lane; a lane starts on a block of its own."""
        slots = self.plan.grid.num_slots
        return tuple(-(-(prompt + slots) // block_size) for prompt in self.lane_prompts)

    def num_blocks(self, block_size: int) -> int:
        """KV blocks of the whole image: its exact demand, known before it starts."""
        return sum(self.lane_blocks(block_size))
