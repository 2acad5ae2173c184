"""The adaptive window: a row starts as soon as waiting longer would not change its first token.

A row's first token is drawn early, from ``window`` tokens of the row above, and predicted again in
every step with one token more. It is kept with probability min(1, new / old), else drawn again
from the rest, as a draft is in speculative decoding; so at any time it is a draw from what is
known by then. The row starts when its token is kept, or when the row above is complete.

What is fed next depends on what was drawn before, so that unlike a fixed window's plan
(:mod:`zipar_vllm.core.frontier`) the steps are worked out while the picture is decoded.

Sources: ZipAR (arXiv 2412.04062), adaptive window; Leviathan et al., "Fast inference from
transformers via speculative decoding" (ICML 2023), section 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .frontier import NOT_SAMPLED, StepPlan
from .grid import Grid
from .sampling import gumbel_noise, uniform_noise

_ATTEMPT_SHIFT = 32
"""An attempt's noise is keyed by grid position + attempt << 32: no grid has as many positions."""


@dataclass(frozen=True, slots=True)
class AdaptiveStep:
    """One forward pass.

    Attributes:
        plan: What it feeds and samples.
        attempt: Where the last input predicts the first token of a row that has not started: how
            often that was predicted before, so that 0 draws a candidate and the others check it.
            None where no row is to start.
    """

    plan: StepPlan
    attempt: int | None


class AdaptiveFrontier:
    """An image's ready set, step by step, from its prefill on.

    Args:
        grid: The grid.
        window: How many tokens of a row must be decoded before the next row is tried, 1 or more;
            from the grid's columns on it is raster order.

    Raises:
        ValueError: ``window`` is smaller than 1.
    """

    def __init__(self, grid: Grid, window: int) -> None:
        self.grid = grid
        self.window = grid.window(window)
        self.completed_rows = int(grid.columns == 1)
        self._closed = 0  # rows at the top whose last token has been fed
        self._counts = [1]  # tokens of each row that has started; the prefill draws the first
        self._attempt = 0

    @property
    def finished(self) -> bool:
        """Whether every token is decoded."""
        return self.completed_rows == self.grid.rows

    @property
    def num_sampled(self) -> int:
        """Rows that the next step samples a token of."""
        going = sum(count < self.grid.columns for count in self._counts)
        return going + (self._opening_slot() is not None)

    def step(self) -> AdaptiveStep:
        """What to feed now; the same until :meth:`advance`."""
        grid, counts = self.grid, self._counts
        inputs: dict[int, tuple[int, int]] = {}  # slot -> (source, target)
        for row in range(self._closed, len(counts)):
            slot, count = grid.slot(row, counts[row] - 1), counts[row]
            inputs[slot] = (slot, slot + 1 if count < grid.columns else NOT_SAMPLED)
        opening_slot = self._opening_slot()
        if opening_slot is not None:
            newest = grid.slot(len(counts) - 1, counts[-1] - 1)
            # On the slot before its first token; a terminator is known, else the newest token
            # stands in for the row's last, which it is once the row is complete.
            source = opening_slot if grid.row_terminator else newest
            inputs[opening_slot] = (source, opening_slot + 1)
        attempt = None if opening_slot is None else self._attempt
        return AdaptiveStep(StepPlan.of(inputs), attempt)

    def advance(self, kept: bool) -> None:
        """Count the step's tokens.

        Args:
            kept: Whether the candidate passed its check; not read where there was none to check,
                nor where the row above is complete, so that whatever came out is kept.
        """
        columns, counts = self.grid.columns, self._counts
        starts = False
        if self._opening_slot() is not None:
            starts = counts[-1] == columns or (self._attempt > 0 and kept)
            self._attempt = 0 if starts else self._attempt + 1
        for row in range(self._closed, len(counts)):
            if counts[row] == columns:
                self._closed = row + 1
            else:
                counts[row] += 1
        if starts:
            counts.append(1)
        while self.completed_rows < len(counts) and counts[self.completed_rows] == columns:
            self.completed_rows += 1

    def _opening_slot(self) -> int | None:
        rows, above = len(self._counts), self._counts[-1]
        if rows == self.grid.rows or above < self.window:
            return None
        return self.grid.slot(rows, 0) - 1


def check(
    probabilities: torch.Tensor,
    previous: torch.Tensor,
    candidates: torch.Tensor,
    *,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    attempts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn draws from ``previous`` into draws from ``probabilities``, changing as few as can be.

    Args:
        probabilities: float32 ``[n, count]``, of the new prediction.
        previous: float32 ``[n, count]``, what the candidates are draws from.
        candidates: int64 ``[n]``.
        seeds: int64 ``[n]``.
        positions: int64 ``[n]``, the tokens' places in the grid.
        attempts: int64 ``[n]``, 1 or more: every attempt has noise of its own.

    Returns:
        Whether each candidate was kept, bool ``[n]``, and the tokens, int64 ``[n]``: draws from
        ``probabilities``.
    """
    keys = positions + (attempts << _ATTEMPT_SHIFT)
    at = candidates.unsqueeze(1)
    new, old = probabilities.gather(1, at), previous.gather(1, at)
    kept = (uniform_noise(seeds, keys).unsqueeze(1) * old <= new).squeeze(1)
    rest = (probabilities - previous).clamp(min=0)
    # Only rounding leaves nothing: then both are the same, and either will do.
    rest = torch.where(rest.sum(dim=1, keepdim=True) > 0, rest, probabilities)
    again = (rest.log() + gumbel_noise(seeds, keys, rest.shape[1])).argmax(dim=1)
    return kept, torch.where(kept, candidates, again)
