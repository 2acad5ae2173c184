"""The dense mask against the plan the engine runs, and against the causal mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zipar_vllm.core.frontier import make_plan
from zipar_vllm.core.grid import Grid
from zipar_vllm.core.visibility import feed_steps, visibility_mask

sizes = st.integers(1, 7)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.integers(1, 9), st.integers(0, 4))
def test_slots_are_fed_when_the_plan_feeds_them(rows, columns, window, prompt):
    grid = Grid(rows, columns, row_terminator=True)
    steps = feed_steps(grid, window, prompt).tolist()
    assert len(steps) == prompt + grid.num_slots
    assert steps[:prompt] == [0] * prompt
    for index, step in enumerate(make_plan(grid, window).steps):
        assert all(steps[prompt + slot] == index for slot in step.slots.tolist())


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.integers(1, 9), st.integers(0, 4))
def test_mask_is_what_stepwise_decoding_sees(rows, columns, window, prompt):
    """Replay the plan: what a query sees are the slots written by then, up to its own."""
    grid = Grid(rows, columns, row_terminator=True)
    mask = visibility_mask(grid, window, prompt)
    written = set(range(prompt))
    for step in make_plan(grid, window).steps:
        written |= {prompt + slot for slot in step.slots.tolist()}
        for slot in step.slots.tolist():
            query = prompt + slot
            seen = set(mask[query].nonzero().flatten().tolist())
            assert seen == {key for key in written if key <= query}


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, st.integers(0, 3), st.integers(0, 4))
def test_widest_window_is_the_causal_mask(rows, columns, extra, prompt):
    mask = visibility_mask(Grid(rows, columns, row_terminator=True), columns + extra, prompt)
    assert torch.equal(mask, torch.ones_like(mask).tril())


def test_without_a_terminator_there_is_no_closed_form():
    with pytest.raises(ValueError, match="row terminator"):
        feed_steps(Grid(3, 4), 2, 1)
    with pytest.raises(ValueError, match="row terminator"):
        visibility_mask(Grid(3, 4), 2, 1)


def test_window_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        visibility_mask(Grid(3, 4, row_terminator=True), 0, 1)
