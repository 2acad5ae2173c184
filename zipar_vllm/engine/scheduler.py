"""Schedule images: every running image takes one step of its plan in every forward pass.

vLLM's own scheduler keeps queueing, pausing, aborting and metrics. In its eyes an image is an
ordinary request that computes one token a step; what that step really feeds is its plan's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from zipar_vllm.models.registry import load_spec

from .arguments import check_config
from .capacity import check_capacity
from .job import ImageJob
from .kv_cache import ImageKVCacheManager
from .stats import ImageStats
from .vllm_api import (
    AsyncScheduler,
    ModelRunnerOutput,
    Request,
    SchedulerOutput,
    SchedulerStats,
)

logger = logging.getLogger(__name__)


@dataclass
class ImageSchedulerOutput(SchedulerOutput):  # type: ignore[misc]
    """A step's schedule, with the place of each image in its plan.

    Attributes:
        steps: By request id, the plan step to take; absent while the prompt is still being
            prefilled (``num_scheduled_tokens`` then says how many of its tokens are next).
    """

    steps: dict[str, int] = field(default_factory=dict)


class _Running:
    """How far an image has come."""

    __slots__ = ("adaptive_rows", "job", "next_step", "steps_taken")

    def __init__(self, job: ImageJob) -> None:
        self.job = job
        self.next_step = 0
        self.steps_taken = 0
        self.adaptive_rows = 0  # as the runner says

    def width(self) -> int:
        """Inputs of the next decoding step, or a bound; the prefill's are counted by vLLM."""
        if self.next_step == 0:
            return 1
        if self.job.params.adaptive:
            return self.job.width
        steps = self.job.plan.steps
        done = self.next_step == len(steps)
        return 1 if done else self.job.num_lanes * steps[self.next_step].num_inputs

    def rows(self) -> int:
        """Rows that the next step samples a token of."""
        if self.next_step == 0:  # the prefill's
            return 1
        if self.job.params.adaptive:
            return self.adaptive_rows
        steps = self.job.plan.steps
        return steps[self.next_step].num_sampled if self.next_step < len(steps) else 0

    def is_scheduled(self) -> bool:
        """Whether its last step is known and was scheduled."""
        return not self.job.params.adaptive and self.next_step == self.job.plan.num_steps


class ZipARScheduler(AsyncScheduler):  # type: ignore[misc]
    """vLLM's scheduler over images.

    Built on the asynchronous one because a fixed-window plan does not depend on sampled tokens;
    where vLLM schedules synchronously (on CPU) it works the same. The steps of an adaptive window
    do depend on them: the runner works them out, and here such an image is as wide as it can be.
    """

    max_num_scheduled_tokens: int
    kv_cache_manager: Any

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        check_config(vllm_config)
        super().__init__(vllm_config, *args, **kwargs)
        self._tokens = load_spec(vllm_config.model_config.model).tokens
        self._images: dict[str, _Running] = {}
        self._steps: dict[str, int] = {}
        self._sampled = 0  # tokens, since the last statistics
        self._token_budget = self.max_num_scheduled_tokens
        self.kv_cache_manager = ImageKVCacheManager(
            self.kv_cache_manager, self._num_blocks, self._may_start
        )

    def add_request(self, request: Request) -> None:
        """Queue an image; one that can never run ends with an error at the next step."""
        super().add_request(request)
        try:
            job = ImageJob.from_request(
                request.num_prompt_tokens, request.sampling_params, self._tokens
            )
            check_capacity(job, self.vllm_config)
        except ValueError as error:
            logger.error("refused image %s: %s", request.request_id, error)
            # vLLM ends the requests of this set with an error of their own, and no others.
            self.grammar_compile_error_reqs.add(request.request_id)
            return
        self._images[request.request_id] = _Running(job)

    def schedule(self, throttle_prefills: bool = False) -> ImageSchedulerOutput:
        """Plan one forward pass: a step of every running image, and prompts where they fit."""
        # vLLM counts one token for each running image; the rest of their inputs come off the
        # budget beforehand, so that prompts never push a pass over it.
        running = (self._images[request.request_id] for request in self.running)
        self.max_num_scheduled_tokens = self._token_budget - sum(i.width() - 1 for i in running)
        self._steps = {}
        output = super().schedule(throttle_prefills)
        return ImageSchedulerOutput(**vars(output), steps=self._steps)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        super()._update_after_schedule(scheduler_output)
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests[request_id]
            if request.is_prefill_chunk:
                continue
            image = self._images[request_id]
            self._steps[request_id] = image.next_step
            self._sampled += image.rows()
            image.next_step += 1
            if image.is_scheduled():
                # vLLM expects one more token for each placeholder: none, and it stops asking.
                request.num_output_placeholders -= 1

    def update_from_output(
        self, scheduler_output: ImageSchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> Any:
        """Take in a step's result."""
        for request_id in scheduler_output.steps:
            image = self._images.get(request_id)  # None: over, or aborted, meanwhile
            if image is not None:
                image.steps_taken += 1
                image.adaptive_rows = model_runner_output.rows.get(request_id, 0)
        return super().update_from_output(scheduler_output, model_runner_output)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        """Append completed rows: more tokens than there were steps, or fewer.

        vLLM holds one placeholder for each step. What rows bring beyond them counts as computed,
        so that tokens + placeholders - computed, its measure of work left, stays as it is.
        """
        surplus = max(0, len(new_token_ids) - request.num_output_placeholders)
        request.num_output_placeholders += surplus
        request.num_computed_tokens += surplus
        return super()._update_request_with_output(request, new_token_ids, is_stale)  # type: ignore[no-any-return]

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        refused = request.request_id in self.grammar_compile_error_reqs
        return not refused and super()._handle_blocked_waiting_request(request)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        """Free both lanes; the number of steps taken travels back with the last output."""
        image = self._images.pop(request.request_id, None)
        transfer, encoder = super()._free_request(request, delay_free_blocks)
        if image is not None:
            transfer = {**(transfer or {}), "zipar_steps": image.steps_taken}
        return transfer, encoder

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """vLLM's statistics of a step, with ours in them."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            images = [self._images[request.request_id] for request in self.running]
            stats.running_lora_adapters = ImageStats(
                tokens=self._sampled,
                rows=sum(image.rows() for image in images),
                guidance_lanes=sum(image.job.num_lanes - 1 for image in images),
            ).pack()
        self._sampled = 0
        return stats  # type: ignore[no-any-return]

    def _num_blocks(self, request: Request) -> int:
        return self._images[request.request_id].job.num_blocks(self.block_size)

    def _may_start(self, request: Request) -> bool:
        """Whether every running image and this one fit into a step at their widest."""
        widths = sum(self._images[r.request_id].job.width for r in self.running)
        return widths + self._images[request.request_id].job.width <= self._token_budget
