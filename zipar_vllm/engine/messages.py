"""What scheduler and runner tell each other beside vLLM's own messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from zipar_vllm.decoding.decoder import Release, StepResult
from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.decoding.pass_cost import PassCost
from zipar_vllm.decoding.policy import DraftCount
from zipar_vllm.decoding.table import StateTable

from .vllm_api import AsyncModelRunnerOutput, LogprobsLists, ModelRunnerOutput, SchedulerOutput

NOTHING = torch.zeros(0, dtype=torch.int64)


@dataclass
class ImageSchedulerOutput(SchedulerOutput):  # type: ignore[misc]
    """What is to be done next, by one forward pass or several.

    Attributes:
        new_jobs: By request id, the images that the runner hears of for the first time.
        stepping: Ids of the images past their prompts, for which each pass counts as a step.
        passes: Forward passes, 1 or more; 1 where a prompt is computed.
        drafts: How many plain steps each of those images looks ahead that may.
    """

    new_jobs: Mapping[str, ImageJob] = field(default_factory=dict)
    stepping: list[str] = field(default_factory=list)
    passes: int = 1
    drafts: Mapping[str, int] = field(default_factory=dict)


@dataclass
class ImageRunnerOutput(ModelRunnerOutput):  # type: ignore[misc]
    """What came out of the passes, with what only the runner knows.

    Attributes:
        num_sampled: Tokens they sampled, of all images.
        num_active_rows: Rows that the next pass samples a token of, of all images.
        draft_counts: How far those images have come that may look ahead.
        pass_cost: What a pass costs beside its inputs.
    """

    num_sampled: int = 0
    num_active_rows: int = 0
    draft_counts: Mapping[str, DraftCount] = field(default_factory=dict)
    pass_cost: PassCost | None = None


class StepOutput(AsyncModelRunnerOutput):  # type: ignore[misc]
    """Released tokens on their way to the host.

    Args:
        request_ids: The requests that took part, in order.
        result: What came out of the passes.
        table: The running images.
        pass_cost: As :class:`ImageRunnerOutput` has it.
    """

    def __init__(
        self,
        request_ids: list[str],
        result: StepResult,
        table: StateTable,
        pass_cost: PassCost | None = None,
    ) -> None:
        self._pass_cost = pass_cost
        self._request_ids = request_ids
        self._result = result
        self._ready: Any = None
        self._scored = [release for release in result.releases if release.logprobs]
        self._copied = _to_host(result.releases, self._scored, table)
        if table.tokens.device.type == "cuda":
            # Whether rows are on their way or not: else vLLM, which waits for a step by its output,
            # would launch steps far ahead of the device, and new images would wait behind them.
            self._ready = torch.cuda.Event(blocking=True)
            self._ready.record()

    def get_output(self) -> ImageRunnerOutput:
        """Wait for the step and its copies, and phrase them as vLLM's output."""
        if self._ready is not None:
            self._ready.synchronize()
        sampled: list[list[int]] = [[] for _ in self._request_ids]
        stop = 0
        for release in self._result.releases:
            start, stop = stop, stop + release.stop - release.start
            sampled[release.request] = self._copied[start:stop].tolist()
        return ImageRunnerOutput(
            req_ids=self._request_ids,
            req_id_to_index={name: index for index, name in enumerate(self._request_ids)},
            sampled_token_ids=sampled,
            logprobs=self._logprobs(sampled, self._copied[stop:]) if self._scored else None,
            num_sampled=self._result.num_sampled,
            num_active_rows=self._result.num_active_rows,
            draft_counts={
                self._request_ids[request]: count for request, count in self._result.counts.items()
            },
            pass_cost=self._pass_cost,
        )

    def _logprobs(self, sampled: list[list[int]], scores: torch.Tensor) -> LogprobsLists:
        """Log-probabilities of the released tokens of the images that want them."""
        scored = {release.request for release in self._scored}
        tokens, starts = [], [0]
        for request, row in enumerate(sampled):
            if request in scored:
                tokens += row
            starts.append(len(tokens))
        values = scores.view(torch.float32).view(-1, 2).numpy()
        return LogprobsLists(
            np.array(tokens)[:, None], values[:, :1], values[:, 1].astype(np.int64), starts
        )


def _to_host(
    releases: Sequence[Release], scored: Sequence[Release], table: StateTable
) -> torch.Tensor:
    """Bring tokens to the host in one copy, int64, and behind them scores: two float32 in one."""
    rows = [table.tokens[own.index, own.start : own.stop] for own in releases]
    if scored and table.scores is not None:
        scores = table.scores.view(torch.int64).squeeze(-1)
        rows += [scores[own.index, own.start : own.stop] for own in scored]
    if not rows:
        return NOTHING
    whole = rows[0] if len(rows) == 1 else torch.cat(rows)
    return whole.to("cpu", non_blocking=True, copy=True)
