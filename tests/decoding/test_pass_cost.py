"""What a pass costs, measured over a tiny model, and over ones of which it is known."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from zipar_vllm.core.grid import Grid
from zipar_vllm.decoding.batch import StepBatch
from zipar_vllm.decoding.pass_cost import MAX_COST, PassCost, measure_pass_cost

from .room import Room


class Clocked:
    """A model that claims to take as long as it is told: a clock of its own goes by it."""

    def __init__(self, model: Any, fixed: float, per_lane: float, per_input: float) -> None:
        self._model = model
        self.kernel = model.kernel
        self._costs = fixed, per_lane, per_input
        self.now = 0.0

    def forward(self, batch: StepBatch) -> torch.Tensor:
        fixed, per_lane, per_input = self._costs
        lanes = len(batch.attention.lanes)
        self.now += fixed + per_lane * lanes + per_input * batch.num_inputs
        return self._model.forward(batch)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._model.logits(hidden)


@pytest.mark.parametrize(
    ("costs", "found"),
    [
        ((8.0, 0.0, 1.0), PassCost(8.0, 0.0)),
        ((6.0, 1.5, 3.0), PassCost(2.0, 0.5)),
        ((5.0, 0.0, 0.0), PassCost(MAX_COST, 0.0)),
    ],
)
@pytest.mark.parametrize("max_inputs", [4, 256])
def test_costs_are_found(
    room: Room,
    terminated: bool,
    monkeypatch: pytest.MonkeyPatch,
    costs: tuple[float, float, float],
    found: PassCost,
    max_inputs: int,
) -> None:
    model = Clocked(room._model, *costs)
    monkeypatch.setattr(time, "perf_counter", lambda: model.now)
    grid = Grid(8, 8, row_terminator=terminated)
    cost = measure_pass_cost(room._decoder, model, grid, num_blocks=3, max_inputs=max_inputs)
    assert cost == pytest.approx(found)
    assert len(room._decoder.table) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (9, 1)])
def test_a_real_pass_costs_something(room: Room, terminated: bool, shape: tuple[int, int]) -> None:
    grid = Grid(*shape, row_terminator=terminated)
    cost = measure_pass_cost(room._decoder, room._model, grid, num_blocks=600, max_inputs=256)
    assert 0 <= cost.fixed <= MAX_COST
    assert 0 <= cost.per_lane <= MAX_COST
    assert room._decoder.times.summary()["steps"] == 0
