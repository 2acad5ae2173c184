"""Ready sets: tables written out by hand, then the rule as properties of any grid."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipar_vllm.core.grid import Grid
from zipar_vllm.decoding.fixed_window import fixed_window
from zipar_vllm.decoding.policy import NOT_SAMPLED
from zipar_vllm.errors import InvalidOptionError

X = NOT_SAMPLED

# One list per step of (position, source, target).
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
    4: [[], *([(p, p, p + 1)] for p in range(11))],
}


@st.composite
def policies(draw):
    grid = draw(st.builds(Grid, st.integers(1, 9), st.integers(1, 9), st.booleans()))
    return fixed_window(grid, draw(st.integers(1, grid.columns)))


def steps_of(policy):
    return [policy.step(index) for index in range(policy.num_steps)]


def table(policy):
    return [
        list(zip(s.positions.tolist(), s.sources.tolist(), s.targets.tolist(), strict=True))
        for s in steps_of(policy)
    ]


def sampled_at(policy):
    """Step at which each position is sampled, asserting that it happens once."""
    steps = {0: 0}
    for index, step in enumerate(steps_of(policy)):
        for target in step.targets[step.targets != NOT_SAMPLED].tolist():
            assert target not in steps
            steps[target] = index
    return steps


def terminators(grid):
    ends = {grid.position(row, grid.columns) for row in range(grid.rows)}
    return ends if grid.row_terminator else set()


@pytest.mark.parametrize("window", [1, 2, 4])
def test_terminated_3x4_by_hand(window):
    assert table(fixed_window(Grid(3, 4, row_terminator=True), window)) == TERMINATED[window]


@pytest.mark.parametrize("window", [1, 2, 4])
def test_plain_3x4_by_hand(window):
    assert table(fixed_window(Grid(3, 4), window)) == PLAIN[window]


@settings(max_examples=60, deadline=None)
@given(policies())
def test_every_token_is_sampled_once_at_its_step(policy):
    grid = policy.grid
    assert sampled_at(policy) == {
        grid.position(i, j): i * policy.window + j
        for i in range(grid.rows)
        for j in range(grid.columns)
    }
    assert policy.num_steps == grid.columns + (grid.rows - 1) * policy.window
    assert sum(step.num_sampled for step in steps_of(policy)) == grid.num_sampled - 1


@settings(max_examples=60, deadline=None)
@given(policies())
def test_every_position_is_fed_once_and_proxied_row_ends_twice(policy):
    grid = policy.grid
    fed: dict[int, list[int]] = {position: [] for position in range(grid.num_positions)}
    for step in steps_of(policy):
        for position, source in zip(step.positions.tolist(), step.sources.tolist(), strict=True):
            fed[position].append(source)
    proxied: dict[int, int] = {}
    if not grid.row_terminator and policy.window < grid.columns:
        proxied = {grid.position(i, grid.columns - 1): i for i in range(grid.rows - 1)}
    never = {grid.position(grid.rows - 1, grid.columns - 1), grid.num_positions - 1}
    for position, sources in fed.items():
        if position in never:
            assert sources == []
        elif position in proxied:
            proxy = grid.position(proxied[position], policy.window - 1)
            assert sources == [proxy, position]
        else:
            assert sources == [position]


@settings(max_examples=60, deadline=None)
@given(policies())
def test_sources_are_known_before_they_are_fed(policy):
    known_at, free = sampled_at(policy), terminators(policy.grid)
    for index, step in enumerate(steps_of(policy)):
        for source in step.sources.tolist():
            assert source in free or known_at[source] < index


@settings(max_examples=60, deadline=None)
@given(policies())
def test_inputs_ascend_and_predict_what_follows_them(policy):
    assert policy.step(0).num_inputs == 0
    free = terminators(policy.grid)
    for step in steps_of(policy):
        positions = step.positions.tolist()
        assert positions == sorted(set(positions))
        assert step.positions.dtype == step.sources.dtype == step.targets.dtype == "int64"
        for position, target in zip(positions, step.targets.tolist(), strict=True):
            assert target in (position + 1, NOT_SAMPLED)
            assert target not in free
        assert step.sampled.tolist() == [
            index for index, target in enumerate(step.targets.tolist()) if target != NOT_SAMPLED
        ]
        assert len(step.drafts) == 0


@settings(max_examples=60, deadline=None)
@given(policies())
def test_widths_are_those_of_the_steps(policy):
    """They are counted without the steps, which may never be asked for."""
    widths = [step.num_inputs for step in steps_of(policy)]
    assert [policy.width(index) for index in range(policy.num_steps)] == widths
    assert policy.max_inputs == max(widths)


@settings(max_examples=60, deadline=None)
@given(policies())
def test_an_image_takes_all_steps_and_completes_rows_in_order(policy):
    at, grid = sampled_at(policy), policy.grid
    done = [max(at[grid.position(i, j)] for j in range(grid.columns)) for i in range(grid.rows)]
    progress = policy.start()
    for index in range(1, policy.num_steps):
        assert progress.complete_rows == sum(step < index for step in done)
        assert not progress.finished
        assert progress.step() is policy.step(index)
        progress.advance(())
    assert progress.finished
    assert progress.complete_rows == grid.rows


def test_images_of_one_policy_do_not_share_their_progress():
    policy = fixed_window(Grid(3, 4), 2)
    one, other = policy.start(), policy.start()
    one.advance(())
    assert other.step() is policy.step(1)
    assert one.step() is policy.step(2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8))
def test_the_widest_window_is_raster_order(rows, columns):
    policy = fixed_window(Grid(rows, columns), columns)
    assert table(policy) == [[], *([(p, p, p + 1)] for p in range(rows * columns - 1))]


def test_emu3_takes_the_published_number_of_steps():
    policy = fixed_window(Grid(90, 90, row_terminator=True), 7)
    assert policy.num_steps == 713
    assert policy.max_inputs <= 90 // 7 + 2


@pytest.mark.parametrize("window", [0, -1, 5])
def test_a_window_that_does_not_fit_is_refused(window):
    with pytest.raises(InvalidOptionError, match=f"window: got {window}, allowed is 1 to 4"):
        fixed_window(Grid(3, 4), window)
