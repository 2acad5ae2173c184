"""The adaptive window: a row starts as soon as waiting longer would not change its first token.

A row's first token is drafted early, from ``window`` tokens of the row above, and predicted again
in every step with one token more. The draft is accepted with probability min(1, new / old), else
drawn again from the rest, as in speculative decoding; so at any time it is a draw from what is
known by then. The row starts when its draft is accepted, or when the row above is complete.

What is fed next depends on what was drawn before, so the steps are worked out while the picture is
decoded, and none of them is wider than the fixed window's.

Sources: ZipAR (arXiv 2412.04062), adaptive window; Leviathan et al., "Fast inference from
transformers via speculative decoding" (ICML 2023), section 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.noise import ATTEMPT_SHIFT, gumbel_noise, uniform_noise
from zipar_vllm.core.transfer import to_device
from zipar_vllm.params import ImageParams

from .fixed_window import fixed_window
from .policy import NOT_SAMPLED, Drafts, Step


def make_policy(grid: Grid, params: ImageParams) -> AdaptiveWindow:
    """The policy of ``params.window``.

    Raises:
        InvalidOptionError: the window is wider than the grid.
    """
    return _adaptive_window(grid, params.window)


@lru_cache(maxsize=256)
def _adaptive_window(grid: Grid, window: int) -> AdaptiveWindow:
    return AdaptiveWindow(grid, window)


class RejectionSampling:
    """Accepts as many drafts as the old and the new prediction share.

    It keeps each image's last prediction: float32 ``[max_images, num_codes]``.
    """

    def __init__(self, max_images: int, num_codes: int, device: torch.device) -> None:
        self._old = torch.zeros(max_images, num_codes, device=device)

    def verify(self, drafts: Drafts) -> tuple[torch.Tensor, list[bool]]:
        """Turn draws from the old predictions into draws from the new ones."""
        new, codes = drafts.sampling.probabilities(drafts.logits), drafts.drawn
        accepted = [False] * len(codes)
        again = np.flatnonzero(drafts.attempts)
        if len(again):
            index = to_device(again, codes.device)
            attempts = to_device(drafts.attempts[again], codes.device)
            verdicts, codes[index] = rejection_sample(
                new[index],
                self._old[drafts.images[index]],
                drafts.previous[index],
                seeds=drafts.sampling.seed[index],
                positions=drafts.sampling.position[index],
                attempts=attempts,
            )
            # The next step depends on it, so the host has to wait here.
            for place, verdict in zip(again.tolist(), verdicts.tolist(), strict=True):
                accepted[place] = verdict
        self._old[drafts.images] = new
        return codes, accepted


class AdaptiveWindow:
    """The policy of a grid and the least that its rows wait for.

    Raises:
        InvalidOptionError: the window is wider than the grid; at its columns it is raster order.
    """

    num_steps = None
    orders = None
    verification = RejectionSampling

    def __init__(self, grid: Grid, window: int) -> None:
        self._grid = grid
        self._window = window
        self.max_inputs = fixed_window(grid, window).max_inputs

    def width(self, step: int) -> int:
        """The most inputs that any step has."""
        return self.max_inputs

    def start(self) -> AdaptiveProgress:
        """Begin an image."""
        return AdaptiveProgress(self._grid, self._window)


class AdaptiveProgress:
    """An image's rows, step by step, from its prefill on."""

    def __init__(self, grid: Grid, window: int) -> None:
        self._grid = grid
        self._window = window
        self._closed = 0  # rows at the top whose last token has been fed
        self._counts = [1]  # tokens of each row that has started; the prefill draws the first
        self._attempts = 0  # of the next row's first token
        self._number = 1  # of the step to take
        self.complete_rows = int(grid.columns == 1)
        self._step = self._make_step()

    @property
    def finished(self) -> bool:
        return self.complete_rows == self._grid.rows

    def step(self) -> Step:
        return self._step

    def advance(self, accepted: Sequence[bool]) -> None:
        """Count the step's tokens.

        Args:
            accepted: The verdict on the draft, if there was one; not read while it is new, nor
                where the row above is complete, so that whatever came out is kept.
        """
        columns, counts = self._grid.columns, self._counts
        starts = False
        if self._opening() is not None:
            starts = counts[-1] == columns or (self._attempts > 0 and accepted[0])
            self._attempts = 0 if starts else self._attempts + 1
        for row in range(self._closed, len(counts)):
            if counts[row] == columns:
                self._closed = row + 1
            else:
                counts[row] += 1
        if starts:
            counts.append(1)
        while self.complete_rows < len(counts) and counts[self.complete_rows] == columns:
            self.complete_rows += 1
        self._number += 1
        self._step = self._make_step()

    def _make_step(self) -> Step:
        grid, counts = self._grid, self._counts
        inputs: dict[int, tuple[int, int]] = {}  # position -> (source, target)
        for row in range(self._closed, len(counts)):
            position, count = grid.position(row, counts[row] - 1), counts[row]
            inputs[position] = (position, position + 1 if count < grid.columns else NOT_SAMPLED)
        opening = self._opening()
        if opening is None:
            return Step.of(inputs, self._number)
        newest = grid.position(len(counts) - 1, counts[-1] - 1)
        # A terminator is known; without one the newest token stands in for the row's last, which
        # it is once the row is complete.
        inputs[opening] = (opening if grid.row_terminator else newest, opening + 1)
        return Step.of(inputs, self._number, drafts={opening: self._attempts})

    def _opening(self) -> int | None:
        """Position before the first token of the row that may start; None where none may."""
        rows, above = len(self._counts), self._counts[-1]
        if rows == self._grid.rows or above < self._window:
            return None
        return self._grid.position(rows, 0) - 1


def rejection_sample(
    probabilities: torch.Tensor,
    previous: torch.Tensor,
    drafts: torch.Tensor,
    *,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    attempts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn draws from ``previous`` into draws from ``probabilities``, changing as few as can be.

    Args:
        probabilities: float32 ``[n, count]``, of the new prediction.
        previous: float32 ``[n, count]``, what the drafts are draws from.
        drafts: int64 ``[n]``.
        seeds: int64 ``[n]``.
        positions: int64 ``[n]``, the tokens' places in the grid.
        attempts: int64 ``[n]``, 1 or more: every attempt has noise of its own.

    Returns:
        Whether each draft was accepted, bool ``[n]``, and the tokens, int64 ``[n]``: draws from
        ``probabilities``.
    """
    keys = positions + (attempts << ATTEMPT_SHIFT)
    index = drafts.unsqueeze(1)
    new, old = probabilities.gather(1, index), previous.gather(1, index)
    accepted = (uniform_noise(seeds, keys).unsqueeze(1) * old <= new).squeeze(1)
    residual = (probabilities - previous).clamp(min=0)
    accepted |= ~residual.any(dim=1)  # equal distributions, up to rounding
    others = (residual.log() + gumbel_noise(seeds, keys, residual.shape[1])).argmax(dim=1)
    return accepted, torch.where(accepted, drafts, others)
