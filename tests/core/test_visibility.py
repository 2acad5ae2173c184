"""The dense mask against the steps the engine runs, and against the causal mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.visibility import feed_steps, visibility_mask
from zipar_vllm.decoding.fixed_window import fixed_window

sizes = st.integers(1, 7)


@st.composite
def policies(draw):
    columns = draw(sizes)
    return fixed_window(Grid(draw(sizes), columns, True), draw(st.integers(1, columns)))


def steps_of(policy):
    return [policy.step(index).positions.tolist() for index in range(policy.num_steps)]


@settings(max_examples=40, deadline=None)
@given(policies())
def test_orders_of_the_policy_are_the_closed_form(policy):
    steps = feed_steps(policy.grid, policy.window, prompt_length=0).tolist()
    for index in range(policy.num_steps):
        step = policy.step(index)
        assert step.orders.dtype == "int32"
        assert step.orders.tolist() == [steps[position] for position in step.positions.tolist()]


@settings(max_examples=40, deadline=None)
@given(policies(), st.integers(0, 4))
def test_positions_are_fed_when_the_policy_feeds_them(policy, prompt):
    steps = feed_steps(policy.grid, policy.window, prompt).tolist()
    assert len(steps) == prompt + policy.grid.num_positions
    assert steps[:prompt] == [0] * prompt
    for index, positions in enumerate(steps_of(policy)):
        assert all(steps[prompt + position] == index for position in positions)


@settings(max_examples=40, deadline=None)
@given(policies(), st.integers(0, 4))
def test_mask_is_what_stepwise_decoding_sees(policy, prompt):
    """Replay the steps: what a query sees are the positions written by then, up to its own."""
    mask = visibility_mask(policy.grid, policy.window, prompt)
    written = set(range(prompt))
    for positions in steps_of(policy):
        written |= {prompt + position for position in positions}
        for position in positions:
            query = prompt + position
            seen = set(mask[query].nonzero().flatten().tolist())
            assert seen == {key for key in written if key <= query}


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, st.integers(0, 4))
def test_widest_window_is_the_causal_mask(rows, columns, prompt):
    mask = visibility_mask(Grid(rows, columns, row_terminator=True), columns, prompt)
    assert torch.equal(mask, torch.ones_like(mask).tril())


def test_without_a_terminator_there_is_no_closed_form():
    with pytest.raises(ValueError, match="row terminator"):
        feed_steps(Grid(3, 4), 2, 1)
    with pytest.raises(ValueError, match="row terminator"):
        visibility_mask(Grid(3, 4), 2, 1)


@pytest.mark.parametrize("window", [0, 5])
def test_a_window_that_does_not_fit_is_refused(window):
    with pytest.raises(ValueError, match=f"got {window}, allowed is 1 to 4"):
        visibility_mask(Grid(3, 4, row_terminator=True), window, 1)
