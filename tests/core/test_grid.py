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
    assert (grid.stride, grid.num_slots, grid.num_sampled) == (5, 15, 12)
    assert [grid.slot(row, 0) for row in range(3)] == [0, 5, 10]
    assert [grid.slot(row, 4) for row in range(3)] == [4, 9, 14]


def test_plain_3x4_by_hand():
    grid = Grid(3, 4)
    assert (grid.stride, grid.num_slots, grid.num_sampled) == (4, 12, 12)
    assert [grid.slot(row, 3) for row in range(3)] == [3, 7, 11]


@settings(max_examples=50, deadline=None)
@given(grids)
def test_slots_number_the_rows_one_after_another(grid):
    slots = [grid.slot(i, j) for i in range(grid.rows) for j in range(grid.stride)]
    assert slots == list(range(grid.num_slots))


@pytest.mark.parametrize("window", [0, -1])
def test_window_below_one_is_refused(window):
    with pytest.raises(ValueError, match=f"at least 1, got {window}"):
        Grid(3, 4).window(window)
    with pytest.raises(ValueError, match=f"at least 1, got {window}"):
        Grid(3, 4).num_steps(window)


@settings(max_examples=50, deadline=None)
@given(grids, st.integers(1, 40))
def test_window_is_capped_at_the_columns(grid, window):
    assert grid.window(window) == min(window, grid.columns)
    assert grid.num_steps(window) == grid.num_steps(min(window, grid.columns))


@pytest.mark.parametrize(
    ("grid", "window", "steps"),
    [
        (Grid(90, 90, True), 7, 713),  # Emu3-Gen, as published
        (Grid(90, 90, True), 90, 8100),
        (Grid(24, 24, True), 4, 116),
        (Grid(1, 7), 3, 7),
        (Grid(7, 1), 3, 7),
    ],
)
def test_num_steps(grid, window, steps):
    assert grid.num_steps(window) == steps
