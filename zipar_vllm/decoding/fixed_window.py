"""The fixed window: row i + 1 starts when row i has ``window`` tokens, and all rows keep step.

Which tokens a step feeds depends on the grid and the window alone, never on what is drawn, so the
steps are worked out once and shared by every image.

Source: ZipAR (arXiv 2412.04062), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.visibility import UNWRITTEN
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.params import ImageParams

from .policy import NOT_SAMPLED, Step


def make_policy(grid: Grid, params: ImageParams) -> FixedWindow:
    """The policy of ``params.window``.

    Raises:
        InvalidOptionError: the window is wider than the grid.
    """
    return fixed_window(grid, params.window)


@lru_cache(maxsize=256)
def fixed_window(grid: Grid, window: int) -> FixedWindow:
    """The one policy of a grid and a window.

    Raises:
        InvalidOptionError: ``window`` is smaller than 1 or wider than the grid.
    """
    if not 1 <= window <= grid.columns:
        allowed = f"1 to {grid.columns} (plain raster order)"
        raise InvalidOptionError.of("window", window, allowed)
    return FixedWindow(grid, window)


class FixedWindow:
    """The steps of a grid under a window: token (i, j) is sampled at step ``i * window + j``.

    Attributes:
        grid, window: What it is for.
        num_steps: ``columns + (rows - 1) * window``.
        max_inputs: Inputs of the widest step.
        orders: Step that first feeds each position.
    """

    verification = None

    def __init__(self, grid: Grid, window: int) -> None:
        self.grid = grid
        self.window = window
        self.num_steps = grid.num_steps(window)
        self._widths = self._count_inputs()
        self.orders = self._first_steps()
        self._steps: list[Step | None] = [None] * self.num_steps  # filled as they are asked for
        self.max_inputs = max(self._widths)

    def width(self, step: int) -> int:
        """Inputs of ``step``."""
        return self._widths[step]

    def start(self) -> _Cursor:
        """Begin an image."""
        return _Cursor(self)

    def step(self, step: int) -> Step:
        """Inputs of ``step``; none of the prefill's."""
        found = self._steps[step]
        if found is None:
            found = self._steps[step] = self._make_step(step)
        return found

    def complete_rows(self, step: int) -> int:
        """Rows whose tokens are all sampled once ``step`` is done."""
        return max(0, min(self.grid.rows, (step - self.grid.columns + 1) // self.window + 1))

    def _rows(self, step: int) -> range:
        """Rows that feed an input at ``step``: the last token is fed a step after its sampling."""
        first = max(0, -(-(step - self.grid.columns) // self.window))
        return range(first, min(self.grid.rows - 1, step // self.window) + 1)

    def _count_inputs(self) -> list[int]:
        counts = [len(self._rows(step)) for step in range(self.num_steps)]
        counts[0] = 0
        if self.window == self.grid.columns and not self.grid.row_terminator:
            # A row's last token is the proxy that opens the next.
            counts[1:] = [1] * (self.num_steps - 1)
        return counts

    def _first_steps(self) -> NDArray[np.int32]:
        """Token (i, j) is fed in the step after its own, before a row opens on its place or after.

        The last token of the last row is fed by none, nor what comes behind it.
        """
        grid = self.grid
        rows, columns = np.arange(grid.rows)[:, None], np.arange(grid.stride)
        steps = np.broadcast_to(rows * self.window + columns + 1, (grid.rows, grid.stride)).copy()
        # The position before the next row's first token is fed to open it.
        steps[:, -1] = (rows[:, 0] + 1) * self.window
        steps[-1, grid.columns - 1 :] = UNWRITTEN
        return steps.astype(np.int32).ravel()

    def _make_step(self, step: int) -> Step:
        grid = self.grid
        inputs: dict[int, tuple[int, int]] = {}  # position -> (source, target)
        for row in self._rows(step):
            column = step - row * self.window
            target = grid.position(row, column) if column < grid.columns else NOT_SAMPLED
            if column > 0:
                position = grid.position(row, column - 1)
                inputs[position] = (position, target)
            elif row > 0:
                # With window = columns the true last token is fed in this very step: it takes
                # the place of the entry that the row above made for it.
                position = grid.position(row, 0) - 1
                proxy = grid.position(row - 1, self.window - 1)
                inputs[position] = (position if grid.row_terminator else proxy, target)
        return Step.of(inputs, order=step)


class _Cursor:
    """One image's place among the steps of its policy."""

    __slots__ = ("_next", "_policy")

    def __init__(self, policy: FixedWindow) -> None:
        self._policy = policy
        self._next = 1

    @property
    def finished(self) -> bool:
        return self._next == self._policy.num_steps

    @property
    def complete_rows(self) -> int:
        return self._policy.complete_rows(self._next - 1)

    def step(self) -> Step:
        return self._policy.step(self._next)

    def advance(self, accepted: Sequence[bool]) -> None:
        self._next += 1
