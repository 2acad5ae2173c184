"""Grid arithmetic against the definitions, spelled out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipar_vllm.core.grid import Grid

grids = st.builds(Grid, st.integers(1, 12), st.integers(1, 12), st.booleans())


@pytest.mark.parametrize(("rows", "columns"), [(0, 4), (4, 0), (-1, 4), (4, -1)])
def test_empty_grid_is_refused(rows, columns):
    with pytest.raises(ValueError, match=f"got {rows}x{columns}"):
        Grid(rows, columns)


def test_terminated_3x4_by_hand():
    grid = Grid(3, 4, row_terminator=True)
    assert (grid.stride, grid.num_positions, grid.num_sampled) == (5, 15, 12)
    assert [grid.position(row, 0) for row in range(3)] == [0, 5, 10]
    assert [grid.position(row, 4) for row in range(3)] == [4, 9, 14]


def test_plain_3x4_by_hand():
    grid = Grid(3, 4)
    assert (grid.stride, grid.num_positions, grid.num_sampled) == (4, 12, 12)
    assert [grid.position(row, 3) for row in range(3)] == [3, 7, 11]


@settings(max_examples=50, deadline=None)
@given(grids)
def test_positions_number_the_rows_one_after_another(grid):
    positions = [grid.position(i, j) for i in range(grid.rows) for j in range(grid.stride)]
    assert positions == list(range(grid.num_positions))


@pytest.mark.parametrize("window", [0, -1, 5])
def test_a_window_that_does_not_fit_is_refused(window):
    with pytest.raises(ValueError, match=f"window: got {window}, allowed is 1 to 4"):
        Grid(3, 4).num_steps(window)


@pytest.mark.parametrize(
    ("grid", "window", "steps"),
    [
        (Grid(90, 90, True), 7, 713),  # Emu3-Gen, as published
        (Grid(90, 90, True), 90, 8100),
        (Grid(24, 24, True), 4, 116),
        (Grid(1, 7), 3, 7),
        (Grid(7, 1), 1, 7),
    ],
)
def test_num_steps(grid, window, steps):
    assert grid.num_steps(window) == steps
