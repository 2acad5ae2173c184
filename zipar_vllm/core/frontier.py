"""Ready sets: which raster slots each decoding step feeds and which tokens it samples.

The plan of a fixed window depends on the grid alone, never on the tokens drawn, so it is
worked out once per (grid, window) and shared by every request that uses it.

Source: ZipAR (arXiv 2412.04062), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .grid import Grid

IntArray = NDArray[np.int32]

NOT_SAMPLED = -1
"""``targets`` entry of an input whose logits nobody reads (it is fed for its key and value)."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass over the ready set, in raster order of the inputs.

    Attributes:
        slots: int32 ``[n]``, raster slot (prompt excluded) each input is written to.
        sources: int32 ``[n]``, raster slot the input's token id is read from; differs from
            ``slots`` only for a proxy, the stand-in for a row end that is not decoded yet.
        targets: int32 ``[n]``, raster slot of the token the input's logits predict, or
            ``NOT_SAMPLED``.
    """

    slots: IntArray
    sources: IntArray
    targets: IntArray

    @classmethod
    def of(cls, inputs: Mapping[int, tuple[int, int]]) -> StepPlan:
        """A step of some inputs, ``{slot: (source, target)}``."""
        slots = sorted(inputs)
        return cls(
            slots=np.array(slots, dtype=np.int32),
            sources=np.array([inputs[slot][0] for slot in slots], dtype=np.int32),
            targets=np.array([inputs[slot][1] for slot in slots], dtype=np.int32),
        )

    @property
    def num_inputs(self) -> int:
        return len(self.slots)

    @property
    def num_sampled(self) -> int:
        return int((self.targets != NOT_SAMPLED).sum())


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps of an image under one window.

    ``steps[0]`` has no inputs of its own: the prefill predicts slot 0 from the prompt's last
    token. ``completed_rows[t]`` counts the rows whose tokens are all sampled after step t, from
    the top: what may be released in raster order.
    """

    grid: Grid
    window: int
    steps: tuple[StepPlan, ...]
    completed_rows: tuple[int, ...]

    @property
    def num_steps(self) -> int:
        return len(self.steps)

    @property
    def max_inputs(self) -> int:
        """Inputs of the widest step, for one lane."""
        return max(step.num_inputs for step in self.steps)


@lru_cache(maxsize=256)
def make_plan(grid: Grid, window: int) -> Plan:
    """Plan every step of ``grid`` under a fixed ``window``.

    Raises:
        ValueError: ``window`` is smaller than 1.
    """
    effective = grid.window(window)
    num_steps = grid.num_steps(effective)
    steps = tuple(_plan_step(grid, effective, t) for t in range(num_steps))
    completed = tuple(
        max(0, min(grid.rows, (t - (grid.columns - 1)) // effective + 1)) for t in range(num_steps)
    )
    return Plan(grid, effective, steps, completed)


def _plan_step(grid: Grid, window: int, step: int) -> StepPlan:
    """Inputs of step ``step`` >= 1; token (i, j) is sampled at step ``i * window + j``."""
    inputs: dict[int, tuple[int, int]] = {}  # slot -> (source, target)
    first_row = max(0, -(-(step - grid.columns) // window))
    last_row = min(grid.rows - 1, step // window)
    for row in range(first_row, last_row + 1):
        column = step - row * window
        target = grid.slot(row, column) if column < grid.columns else NOT_SAMPLED
        if column == 0:
            # A row opens on the row above's terminator, or on a proxy where there is none. A
            # true token that lands on the same slot in the same step is the proxy (w = C).
            if row > 0:
                slot, source = _opening(grid, window, row)
                inputs[slot] = (source, target)
        elif target != NOT_SAMPLED or row < grid.rows - 1:
            slot = grid.slot(row, column - 1)
            inputs[slot] = (slot, target)
    return StepPlan.of(inputs)


def _opening(grid: Grid, window: int, row: int) -> tuple[int, int]:
    """Slot and source of the input that predicts the first token of ``row`` > 0."""
    last_slot = grid.slot(row, 0) - 1
    if grid.row_terminator:
        return last_slot, last_slot
    return last_slot, grid.slot(row - 1, window - 1)
