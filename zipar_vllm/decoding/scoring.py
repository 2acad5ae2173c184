"""Score a finished picture: the logits of raster order in a pass per row, nothing drawn.

All tokens are known, so a row's are fed together, each of which sees what it would see in raster
order: the prompt and all before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.visibility import UNWRITTEN

from .policy import NO_INTS, NOT_SAMPLED, Step


@lru_cache(maxsize=64)
def scoring(grid: Grid) -> Scoring:
    """The one policy that scores pictures of a grid."""
    return Scoring(grid)


class Scoring:
    """A row's inputs in every step, the last of which predicts the next row's first token.

    Attributes:
        grid: What it is for.
        num_steps: ``rows + 1``, the prefill counted, or a step less for a single column.
        max_inputs: Positions of a row.
        orders: As in raster order: every position has one of its own.
    """

    verification = None

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._num_fed = grid.position(grid.rows - 1, grid.columns - 1)  # all before the last token
        self.num_steps = 1 + -(-self._num_fed // grid.stride)
        self.max_inputs = grid.stride
        self.orders = np.arange(1, grid.num_positions + 1, dtype=np.int32)
        self.orders[self._num_fed :] = UNWRITTEN

    def width(self, step: int) -> int:
        """Inputs of ``step``, or more."""
        return self.max_inputs if step else 0

    def start(self) -> _Cursor:
        """Begin a picture."""
        return _Cursor(self)

    def step(self, step: int) -> Step:
        """Inputs of ``step``; none of the prefill's."""
        stride = self.grid.stride
        positions = np.arange((step - 1) * stride, min(step * stride, self._num_fed))
        targets = positions + 1
        targets[targets % stride >= self.grid.columns] = NOT_SAMPLED  # terminators
        return Step(
            positions=positions,
            sources=positions,
            targets=targets,
            orders=self.orders[positions],
            sampled=np.flatnonzero(targets != NOT_SAMPLED),
            drafts=NO_INTS,
            attempts=NO_INTS,
            previous=NO_INTS,
            forget=NO_INTS,
        )

    def complete_rows(self, step: int) -> int:
        """Rows that are scored once ``step`` is done."""
        stride = self.grid.stride
        return min(self.grid.rows, (step * stride - self.grid.columns + 1) // stride + 1)


class _Cursor:
    """How far a picture is scored."""

    __slots__ = ("_next", "_policy")

    def __init__(self, policy: Scoring) -> None:
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
