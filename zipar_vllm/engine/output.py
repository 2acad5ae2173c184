"""A step's result on its way back to vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .vllm_api import AsyncModelRunnerOutput, ModelRunnerOutput


@dataclass(frozen=True, slots=True)
class Release:
    """Rows of an image that a step completed: a range of its token row."""

    index: int
    row: int
    start: int
    stop: int


@dataclass
class ImageRunnerOutput(ModelRunnerOutput):  # type: ignore[misc]
    """vLLM's output of a step, with what only the runner knows.

    Attributes:
        rows: By request id, how many rows the next step of an image under an adaptive window
            samples a token of.
    """

    rows: Mapping[str, int] = field(default_factory=dict)


class StepOutput(AsyncModelRunnerOutput):  # type: ignore[misc]
    """A step's released tokens on their way to the host.

    Args:
        request_ids: The step's requests, in order.
        releases: Completed rows; most steps of most images complete none.
        tokens: The state table's token rows, on the device.
        rows: As :class:`ImageRunnerOutput` has them.
    """

    def __init__(
        self,
        request_ids: list[str],
        releases: list[Release],
        tokens: torch.Tensor,
        rows: Mapping[str, int],
    ) -> None:
        self._adaptive_rows = rows
        self._request_ids = request_ids
        self._releases = releases
        self._ready: Any = None
        device = tokens.device
        self._rows = [
            tokens[r.row, r.start : r.stop].to("cpu", non_blocking=True, copy=True)
            for r in releases
        ]
        if releases and device.type == "cuda":
            self._ready = torch.cuda.Event()
            self._ready.record()

    def get_output(self) -> ImageRunnerOutput:
        """Wait for the copies and phrase them as vLLM's output."""
        if self._ready is not None:
            self._ready.synchronize()
        sampled: list[list[int]] = [[] for _ in self._request_ids]
        for release, row in zip(self._releases, self._rows, strict=True):
            sampled[release.index] = row.tolist()
        return ImageRunnerOutput(
            req_ids=self._request_ids,
            req_id_to_index={name: index for index, name in enumerate(self._request_ids)},
            sampled_token_ids=sampled,
            rows=self._adaptive_rows,
        )
