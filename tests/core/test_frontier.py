"""Ready sets: tables written out by hand, then the rule as properties of any grid."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipar_vllm.core.frontier import NOT_SAMPLED, make_plan
from zipar_vllm.core.grid import Grid

X = NOT_SAMPLED

# One list a step of (slot, source, target).
TERMINATED = {
    1: [
        [],
        [(0, 0, 1), (4, 4, 5)],
        [(1, 1, 2), (5, 5, 6), (9, 9, 10)],
        [(2, 2, 3), (6, 6, 7), (10, 10, 11)],
        [(3, 3, X), (7, 7, 8), (11, 11, 12)],
        [(8, 8, X), (12, 12, 13)],
    ],
    2: [
        [],
        [(0, 0, 1)],
        [(1, 1, 2), (4, 4, 5)],
        [(2, 2, 3), (5, 5, 6)],
        [(3, 3, X), (6, 6, 7), (9, 9, 10)],
        [(7, 7, 8), (10, 10, 11)],
        [(8, 8, X), (11, 11, 12)],
        [(12, 12, 13)],
    ],
    4: [
        [],
        [(0, 0, 1)],
        [(1, 1, 2)],
        [(2, 2, 3)],
        [(3, 3, X), (4, 4, 5)],
        [(5, 5, 6)],
        [(6, 6, 7)],
        [(7, 7, 8)],
        [(8, 8, X), (9, 9, 10)],
        [(10, 10, 11)],
        [(11, 11, 12)],
        [(12, 12, 13)],
    ],
}
PLAIN = {
    1: [
        [],
        [(0, 0, 1), (3, 0, 4)],
        [(1, 1, 2), (4, 4, 5), (7, 4, 8)],
        [(2, 2, 3), (5, 5, 6), (8, 8, 9)],
        [(3, 3, X), (6, 6, 7), (9, 9, 10)],
        [(7, 7, X), (10, 10, 11)],
    ],
    2: [
        [],
        [(0, 0, 1)],
        [(1, 1, 2), (3, 1, 4)],
        [(2, 2, 3), (4, 4, 5)],
        [(3, 3, X), (5, 5, 6), (7, 5, 8)],
        [(6, 6, 7), (8, 8, 9)],
        [(7, 7, X), (9, 9, 10)],
        [(10, 10, 11)],
    ],
    4: [[], *([(slot, slot, slot + 1)] for slot in range(11))],
}

plans = st.builds(
    make_plan,
    st.builds(Grid, st.integers(1, 9), st.integers(1, 9), st.booleans()),
    st.integers(1, 11),
)


def table(plan):
    return [
        list(zip(step.slots.tolist(), step.sources.tolist(), step.targets.tolist(), strict=True))
        for step in plan.steps
    ]


def sampled_at(plan):
    """Step at which each slot is sampled, asserting that it happens once."""
    steps = {0: 0}
    for index, step in enumerate(plan.steps):
        for target in step.targets[step.targets != NOT_SAMPLED].tolist():
            assert target not in steps
            steps[target] = index
    return steps


def terminators(grid):
    return {grid.slot(i, grid.columns) for i in range(grid.rows)} if grid.row_terminator else set()


@pytest.mark.parametrize("window", [1, 2, 4])
def test_terminated_3x4_by_hand(window):
    assert table(make_plan(Grid(3, 4, row_terminator=True), window)) == TERMINATED[window]


@pytest.mark.parametrize("window", [1, 2, 4])
def test_plain_3x4_by_hand(window):
    assert table(make_plan(Grid(3, 4), window)) == PLAIN[window]


@settings(max_examples=60, deadline=None)
@given(plans)
def test_every_token_is_sampled_once_at_its_step(plan):
    grid = plan.grid
    assert sampled_at(plan) == {
        grid.slot(i, j): i * plan.window + j for i in range(grid.rows) for j in range(grid.columns)
    }
    assert plan.num_steps == grid.columns + (grid.rows - 1) * plan.window
    assert sum(step.num_sampled for step in plan.steps) == grid.num_sampled - 1


@settings(max_examples=60, deadline=None)
@given(plans)
def test_every_slot_is_fed_once_and_proxied_row_ends_twice(plan):
    grid = plan.grid
    fed = {slot: [] for slot in range(grid.num_slots)}
    for step in plan.steps:
        for slot, source in zip(step.slots.tolist(), step.sources.tolist(), strict=True):
            fed[slot].append(source)
    proxied = set()
    if not grid.row_terminator and plan.window < grid.columns:
        proxied = {grid.slot(i, grid.columns - 1): i for i in range(grid.rows - 1)}
    never = {grid.slot(grid.rows - 1, grid.columns - 1), grid.num_slots - 1}
    for slot, sources in fed.items():
        if slot in never:
            assert sources == []
        elif slot in proxied:
            assert sources == [grid.slot(proxied[slot], plan.window - 1), slot]
        else:
            assert sources == [slot]


@settings(max_examples=60, deadline=None)
@given(plans)
def test_sources_are_known_before_they_are_fed(plan):
    known_at, free = sampled_at(plan), terminators(plan.grid)
    for index, step in enumerate(plan.steps):
        for source in step.sources.tolist():
            assert source in free or known_at[source] < index


@settings(max_examples=60, deadline=None)
@given(plans)
def test_inputs_ascend_and_predict_what_follows_them(plan):
    assert plan.steps[0].num_inputs == 0
    free = terminators(plan.grid)
    for step in plan.steps:
        slots = step.slots.tolist()
        assert slots == sorted(set(slots))
        assert step.slots.dtype == step.sources.dtype == step.targets.dtype == "int32"
        for slot, target in zip(slots, step.targets.tolist(), strict=True):
            assert target in (slot + 1, NOT_SAMPLED)
            assert target not in free
    assert plan.max_inputs == max(step.num_inputs for step in plan.steps)


@settings(max_examples=60, deadline=None)
@given(plans)
def test_completed_rows_counts_rows_fully_sampled(plan):
    at, grid = sampled_at(plan), plan.grid
    done = [max(at[grid.slot(i, j)] for j in range(grid.columns)) for i in range(grid.rows)]
    for index, completed in enumerate(plan.completed_rows):
        assert completed == sum(step <= index for step in done)
    assert list(plan.completed_rows) == sorted(plan.completed_rows)
    assert len(plan.completed_rows) == plan.num_steps
    assert plan.completed_rows[-1] == grid.rows


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 5))
def test_widest_window_is_raster_order(rows, columns, extra):
    plan = make_plan(Grid(rows, columns), columns + extra)
    assert table(plan) == [[], *([(s, s, s + 1)] for s in range(rows * columns - 1))]


def test_emu3_takes_the_published_number_of_steps():
    plan = make_plan(Grid(90, 90, row_terminator=True), 7)
    assert plan.num_steps == 713
    assert plan.max_inputs <= 90 // 7 + 2


def test_window_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        make_plan(Grid(3, 4), 0)
