"""Schedule images: every running image takes one step of its policy in every forward pass.

vLLM's own scheduler keeps queueing, pausing, aborting and metrics. In its eyes an image is an
ordinary request that computes one token per step; what that step really feeds is its policy's.
"""

from __future__ import annotations

import logging
import time
from itertools import chain
from typing import Any

from zipar_vllm.core.grid import Grid
from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.decoding.pass_cost import PassCost
from zipar_vllm.decoding.policy import DraftCount
from zipar_vllm.models.registry import load_spec

from .admission import BlockLedger, Pace, block_passes, is_crowded
from .arguments import check_config
from .borrowed import ImageStats, is_refused, put_stats, put_steps, refuse
from .capacity import check_capacity, usable_blocks
from .drafts import DraftChooser, Experience, make_experience
from .kv_cache import ImageKVCacheManager
from .messages import ImageRunnerOutput, ImageSchedulerOutput
from .request import read_job
from .vllm_api import (
    AsyncScheduler,
    EngineCoreOutput,
    EngineCoreOutputs,
    Request,
    SchedulerOutput,
    SchedulerStats,
)

logger = logging.getLogger(__name__)

MAX_PASSES = 64
BURST_SECONDS = 0.02
"""How long a new image may have to wait for passes that were planned at once, roughly."""

SPARE_INPUTS = "zipar_spare_inputs"
"""Key of vLLM's ``additional_config``: inputs that take as long as a pass's fixed part, instead of
what the runner measures; lanes then cost nothing. "auto" makes no drafts at 0."""


class _Running:
    """How far an image has come.

    Attributes:
        job: The image.
        block_steps: The first step that may write to each of its KV blocks.
        next_step: The step to schedule next; 0 is the prefill's last.
        steps_taken: Forward passes whose result is known.
        drafts: Plain steps that the pass to come looks ahead.
        draft_count: How far drafts have brought it; None where it makes none.
    """

    __slots__ = (
        "_chooser",
        "_policy",
        "block_steps",
        "draft_count",
        "drafts",
        "job",
        "next_step",
        "steps_taken",
    )

    def __init__(self, job: ImageJob, block_size: int, chooser: DraftChooser | None) -> None:
        self._policy = job.policy
        self.job = job
        self.block_steps = job.block_steps(block_size)
        self.next_step = 0
        self.steps_taken = 0
        self.drafts = 0
        has_drafts = job.params.drafts != 0
        self.draft_count = DraftCount(1, 0, 0) if has_drafts else None
        self._chooser = chooser

    @property
    def draft_inputs(self) -> int:
        """Inputs, at most, for each plain step that it looks ahead."""
        return max(1, self.job.max_inputs)

    def choose_drafts(self, room: int, share: float) -> int:
        """Decide how many plain steps the next pass looks ahead.

        Args:
            room: Inputs that the pass has room for.
            share: What the pass costs on the image's account beside its inputs, in inputs.
        """
        wanted = self.job.params.drafts
        if self._chooser is not None:
            wanted = self._chooser.choose(share)
        self.drafts = min(int(wanted), room // self.draft_inputs)
        return self.drafts

    def take_count(self, count: DraftCount, drafts: int, passes: int) -> DraftCount:
        """Take in how far passes have brought it; what they added."""
        before = self.draft_count or DraftCount(1, 0, 0)
        self.draft_count = count
        added = count - before
        if self._chooser is not None and added.plain_steps:  # the prefill adds none
            self._chooser.observe(drafts, passes, added.plain_steps, added.made)
        return added

    def width(self) -> int:
        """Inputs of the next decoding step, or a bound; the prefill's are counted by vLLM."""
        if self.next_step == 0 or self.is_scheduled():
            return 1
        return self.job.num_lanes * self._policy.width(self.next_step)

    def steps_ahead(self) -> int:
        """Steps, 1 or more, that may be planned before the result of any is known."""
        if self.next_step == 0:
            return 1
        return max(1, -(-self.steps_left() // (self.drafts + 1)))

    def steps_left(self) -> int:
        """Steps still to be scheduled, at most; 0 where that is not known, or none is left."""
        if self.draft_count is not None:
            plain_steps = self.job.grid.num_steps(self.job.params.window)
            return plain_steps - (self.draft_count.plain_steps if self.next_step else 0)
        return (self._policy.num_steps or self.next_step) - self.next_step

    def is_scheduled(self) -> bool:
        """Whether its last step is known and was scheduled."""
        return self.next_step == self._policy.num_steps


class ZipARScheduler(AsyncScheduler):  # type: ignore[misc]
    """vLLM's scheduler over images.

    Built on the asynchronous one because the steps of a policy may not depend on sampled tokens;
    where vLLM schedules synchronously (on CPU) it works the same. Where they do depend on them, the
    runner finds out when the image is complete, and here such an image is as wide as it can be.

    A small model's forward pass takes no longer than planning it and telling of it. Where vLLM does
    these one after the other, so synchronously, several passes are planned at once, as many as all
    running images are sure to take and ``burst_seconds`` allow.
    """

    max_num_scheduled_tokens: int
    kv_cache_manager: Any

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        check_config(vllm_config)
        super().__init__(vllm_config, *args, **kwargs)
        config = vllm_config.model_config
        self._vocabulary = load_spec(config.model, config.revision).vocabulary
        self._images: dict[str, _Running] = {}
        self._stepping: list[str] = []
        self._sampled = 0  # tokens, since the last statistics
        self._sampling_passes = 0
        self._active_rows = 0
        self._drafts = DraftCount(0, 0, 0)  # since the last statistics
        option = (vllm_config.additional_config or {}).get(SPARE_INPUTS)
        self._has_given_cost = option is not None
        self._pass_cost = PassCost(float(option or 0), 0.0)
        self._experiences: dict[tuple[Grid, int], Experience] = {}
        self._token_budget = self.max_num_scheduled_tokens
        is_asynchronous = vllm_config.scheduler_config.async_scheduling
        self.burst_seconds = 0.0 if is_asynchronous else BURST_SECONDS
        self._passes = 1
        self._pass_seconds = float("inf")  # until the first one is measured
        self._planned_at = 0.0
        self._ledger = BlockLedger()
        self._planned_passes = 0  # since the start
        self._pace = Pace()
        self.kv_cache_manager = ImageKVCacheManager(
            self.kv_cache_manager,
            self._ledger,
            block_steps=lambda request: self._images[request.request_id].block_steps,
            steps_left=self._steps_left,
            may_start=self._may_start,
            started=self._started,
        )

    def add_request(self, request: Request) -> None:
        """Queue an image; one that can never run ends with an error at the next step."""
        super().add_request(request)
        try:
            sampling = request.sampling_params
            job = read_job(request.num_prompt_tokens, sampling, self._vocabulary)
            check_capacity(job, self.vllm_config)
        except ValueError as error:
            logger.error("refused image %s: %s", request.request_id, error)
            refuse(self, request)
            return
        chooser = self._make_chooser(job)
        self._images[request.request_id] = _Running(job, self.block_size, chooser)

    def schedule(self, throttle_prefills: bool = False) -> ImageSchedulerOutput:
        """Plan a forward pass: a step of every running image, and prompts where they fit.

        Or several, in which all images that take part take their steps and nothing else happens.
        """
        # vLLM counts one token for each running image; the rest of their inputs come off the
        # budget beforehand, so that prompts never push a pass over it.
        running = (self._images[request.request_id] for request in self.running)
        self.max_num_scheduled_tokens = self._token_budget - sum(i.width() - 1 for i in running)
        self._stepping = []
        # vLLM passes over a request that has nothing to compute.
        waiting = [request for request in self.running if self._has_to_wait(request)]
        for request in waiting:
            request.num_output_placeholders -= 1
        output = super().schedule(throttle_prefills)
        for request in waiting:
            request.num_output_placeholders += 1
        new = [request.req_id for request in output.scheduled_new_reqs]
        jobs = {request_id: self._images[request_id].job for request_id in new}
        self._planned_at = time.perf_counter()
        return ImageSchedulerOutput(
            **vars(output),
            new_jobs=jobs,
            stepping=self._stepping,
            passes=self._passes,
            drafts={name: self._images[name].drafts for name in self._stepping},
        )

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        super()._update_after_schedule(scheduler_output)
        self._choose_drafts(scheduler_output)
        self._passes = self._count_passes(scheduler_output)
        self._planned_passes += self._passes
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests[request_id]
            if request.is_prefill_chunk:
                continue
            image = self._images[request_id]
            image.next_step += self._passes
            self._stepping.append(request_id)
            if image.is_scheduled():
                # Without a placeholder vLLM stops scheduling the request.
                request.num_output_placeholders -= 1
                # Steps run in order, so whoever is to have its blocks may write in the next one.
                self._ledger.end(request_id)

    def _choose_drafts(self, scheduler_output: SchedulerOutput) -> None:
        """Let images look ahead as far as they want and the step, once all is in it, has room."""
        scheduled = [self._images[name] for name in scheduler_output.num_scheduled_tokens]
        drafting = [
            image for image in scheduled if image.draft_count is not None and image.next_step
        ]
        room = self.max_num_scheduled_tokens - scheduler_output.total_num_scheduled_tokens
        fixed, per_lane = self._pass_cost
        for place, image in enumerate(drafting):
            own = fixed / len(scheduled) + per_lane * image.job.num_lanes
            drafts = image.choose_drafts(room // (len(drafting) - place), own)
            room -= drafts * image.draft_inputs

    def _make_chooser(self, job: ImageJob) -> DraftChooser | None:
        """Who chooses an image's drafts, if that is left to the scheduler."""
        if job.params.drafts != "auto":
            return None
        grid, window = job.grid, job.params.window
        kind = self._experiences.setdefault((grid, window), make_experience())
        plain_inputs = grid.rows * grid.columns / grid.num_steps(window)
        return DraftChooser(kind, plain_inputs, job.num_lanes)

    def _count_passes(self, scheduler_output: SchedulerOutput) -> int:
        """Passes to plan at once, so that no image waits for another longer than it would."""
        passes = min(MAX_PASSES, int(self.burst_seconds / self._pass_seconds))
        for request_id in scheduler_output.num_scheduled_tokens:
            if passes <= 1 or self.requests[request_id].is_prefill_chunk:
                return 1
            image = self._images[request_id]
            until_wait = self._ledger.first_wait(request_id) - image.next_step
            passes = min(passes, image.steps_ahead(), until_wait)
        return max(1, passes)

    def update_from_output(
        self, scheduler_output: ImageSchedulerOutput, model_runner_output: ImageRunnerOutput
    ) -> Any:
        """Take in the result of what was planned."""
        self._pass_seconds = (time.perf_counter() - self._planned_at) / scheduler_output.passes
        self._sampled += model_runner_output.num_sampled
        if model_runner_output.num_sampled:
            self._sampling_passes += scheduler_output.passes
        self._active_rows = model_runner_output.num_active_rows
        begun = []
        for request_id in scheduler_output.stepping:
            image = self._images.get(request_id)  # None: over, or aborted, meanwhile
            if image is not None:
                if image.steps_taken == 0:
                    begun.append(request_id)
                image.steps_taken += scheduler_output.passes
        cost = model_runner_output.pass_cost
        if cost is not None and not self._has_given_cost:
            self._pass_cost = cost
        for request_id, count in model_runner_output.draft_counts.items():
            image = self._images.get(request_id)
            if image is not None:
                drafts = scheduler_output.drafts.get(request_id, 0)
                self._drafts += image.take_count(count, drafts, scheduler_output.passes)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request_id in begun:
            if request_id in self.requests:  # not over already
                self._tell_of_beginning(self.requests[request_id], outputs)
        return outputs

    def _tell_of_beginning(self, request: Request, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Send an output without tokens: the first one is drawn, and its row takes a while.

        With it go the prefill's times and counts, which are of this moment.
        """
        prefill = request.take_prefill_stats()
        if prefill is not None:
            prefill.finalize(self.kv_cache_manager.estimate_cached_tokens(request))
        told = outputs.setdefault(request.client_index, EngineCoreOutputs(outputs=[]))
        told.outputs.append(
            EngineCoreOutput(
                request_id=request.request_id,
                new_token_ids=[],
                events=request.take_events(),
                prefill_stats=prefill,
            )
        )

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        """Append completed rows: more tokens than there were steps, or fewer.

        vLLM holds one placeholder for each step. What rows bring beyond them counts as computed,
        so that tokens + placeholders - computed, its measure of work left, stays as it is. And it
        looks at each token whether the request stops there; an image stops at its last one.
        """
        before = new_token_ids[:-1]
        surplus = max(0, len(new_token_ids) - request.num_output_placeholders)
        request.append_output_token_ids(before)
        request.num_output_placeholders += surplus - len(before)
        request.num_computed_tokens += surplus
        last, stopped = super()._update_request_with_output(request, new_token_ids[-1:], is_stale)
        return before + last, stopped

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        return not is_refused(self, request) and super()._handle_blocked_waiting_request(request)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        """Free both lanes; the number of steps taken travels back with the last output."""
        image = self._images.pop(request.request_id, None)
        self._ledger.end(request.request_id)
        transfer, encoder = super()._free_request(request, delay_free_blocks)
        if image is not None:
            transfer = put_steps(transfer, image.steps_taken, image.draft_count)
        return transfer, encoder

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """vLLM's statistics of a step, with ours in them."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            images = [self._images[request.request_id] for request in self.running]
            put_stats(
                stats,
                ImageStats(
                    tokens=self._sampled,
                    passes=self._sampling_passes,
                    rows=self._active_rows if images else 0,
                    guidance_lanes=sum(image.job.num_lanes - 1 for image in images),
                    drafts=self._drafts.made,
                    accepted_drafts=self._drafts.accepted,
                ),
            )
        self._sampled = self._sampling_passes = 0
        self._drafts = DraftCount(0, 0, 0)
        return stats  # type: ignore[no-any-return]

    def _steps_left(self) -> dict[str, int]:
        """Of the running images of which it is known, the steps until each ends."""
        left = {r.request_id: self._images[r.request_id].steps_left() for r in self.running}
        return {request_id: steps for request_id, steps in left.items() if steps}

    def _has_to_wait(self, request: Request) -> bool:
        """Whether its next step would write to a block that another image still holds."""
        first_wait = self._ledger.first_wait(request.request_id)
        return first_wait <= self._images[request.request_id].next_step

    def _may_start(self, request: Request) -> bool:
        """Whether every running image and this one fit into a step at their widest, and it may."""
        jobs = [self._images[r.request_id].job for r in (*self.running, request)]
        if sum(job.max_inputs for job in jobs) > self._token_budget:
            return False
        if not self.running or self._pace.is_reached(self._planned_passes):
            return True
        here = (self._images.get(r.request_id) for r in chain(self.running, self.waiting))
        blocks = (len(image.block_steps) for image in here if image is not None)
        return not is_crowded(blocks, self.max_num_running_reqs, usable_blocks(self.vllm_config))

    def _started(self, request: Request) -> None:
        image, usable = self._images[request.request_id], usable_blocks(self.vllm_config)
        passes = block_passes(image.block_steps, image.job.policy.num_steps) / usable
        self._pace.start(self._planned_passes, passes, alone=not self.running)
