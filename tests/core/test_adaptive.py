"""The adaptive window: tables by hand, the rule as properties, the check by counting."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zipar_vllm.core.adaptive import AdaptiveFrontier, check
from zipar_vllm.core.frontier import NOT_SAMPLED, make_plan
from zipar_vllm.core.grid import Grid

X = NOT_SAMPLED

grids = st.builds(Grid, st.integers(1, 7), st.integers(1, 7), st.booleans())
verdicts = st.lists(st.booleans(), max_size=60)


def run(frontier, kept):
    """All steps as lists of (slot, source, target), with their attempts; checks pass as listed."""
    steps, verdicts = [], iter(kept)
    while not frontier.finished:
        step = frontier.step()
        plan = step.plan
        assert plan.num_sampled == frontier.num_sampled
        inputs = zip(plan.slots.tolist(), plan.sources.tolist(), plan.targets.tolist(), strict=True)
        steps.append((list(inputs), step.attempt))
        checked = step.attempt is not None and step.attempt > 0
        frontier.advance(next(verdicts, False) if checked else False)
    return steps


def test_terminated_2x4_by_hand_where_the_second_check_passes():
    steps = run(AdaptiveFrontier(Grid(2, 4, row_terminator=True), 1), [False, True])
    assert steps == [
        ([(0, 0, 1), (4, 4, 5)], 0),
        ([(1, 1, 2), (4, 4, 5)], 1),
        ([(2, 2, 3), (4, 4, 5)], 2),
        ([(3, 3, X), (5, 5, 6)], None),
        ([(6, 6, 7)], None),
        ([(7, 7, 8)], None),
    ]


def test_plain_2x4_by_hand_where_no_check_passes():
    steps = run(AdaptiveFrontier(Grid(2, 4), 2), [])
    assert steps == [
        ([(0, 0, 1)], None),
        ([(1, 1, 2), (3, 1, 4)], 0),
        ([(2, 2, 3), (3, 2, 4)], 1),
        ([(3, 3, 4)], 2),  # the row is complete: whatever comes out is kept
        ([(4, 4, 5)], None),
        ([(5, 5, 6)], None),
        ([(6, 6, 7)], None),
    ]


@settings(max_examples=100, deadline=None)
@given(grids, st.integers(1, 8), verdicts)
def test_every_step_samples_what_is_next_from_what_is_known(grid, window, kept):
    known = {grid.slot(0, 0)}
    if grid.row_terminator:
        known |= {grid.slot(row, grid.columns) for row in range(grid.rows)}
    for inputs, attempt in run(AdaptiveFrontier(grid, window), kept):
        slots = [slot for slot, _, _ in inputs]
        assert slots == sorted(set(slots))
        opened = inputs[-1][2] if attempt is not None else None
        for slot, source, target in inputs:
            assert source in known
            assert target in (slot + 1, X)
            if target != X and target != opened:
                assert target not in known
        fresh = {target for _, _, target in inputs if target != X}
        if opened is not None:
            assert opened % grid.stride == 0
            assert opened not in known or attempt > 0
        known |= fresh
    assert known == set(range(grid.num_slots))


@settings(max_examples=100, deadline=None)
@given(grids, st.integers(1, 8), verdicts)
def test_bounds_on_steps_and_width(grid, window, kept):
    frontier = AdaptiveFrontier(grid, window)
    steps = run(frontier, kept)
    raster = grid.num_steps(grid.columns)
    lag = min(frontier.window + 1, grid.columns)
    assert grid.columns + (grid.rows - 1) * lag <= len(steps) + 1 <= raster
    # The scheduler reserves what a fixed window takes.
    widest = make_plan(grid, window).max_inputs
    assert max((len(inputs) for inputs, _ in steps), default=0) <= widest


@settings(max_examples=50, deadline=None)
@given(grids, st.integers(1, 8))
def test_a_row_starts_one_step_after_the_window_where_every_check_passes(grid, window):
    frontier = AdaptiveFrontier(grid, window)
    lag = min(frontier.window + 1, grid.columns)
    assert len(run(frontier, [True] * 99)) + 1 == grid.columns + (grid.rows - 1) * lag


@settings(max_examples=50, deadline=None)
@given(grids, verdicts)
def test_widest_window_is_raster_order(grid, kept):
    steps = run(AdaptiveFrontier(grid, grid.columns), kept)
    plan = make_plan(grid, grid.columns)
    assert [inputs for inputs, _ in steps] == [
        list(zip(step.slots.tolist(), step.sources.tolist(), step.targets.tolist(), strict=True))
        for step in plan.steps[1:]
    ]
    assert all(attempt in (None, 0) for _, attempt in steps)


@settings(max_examples=50, deadline=None)
@given(grids, st.integers(1, 8), verdicts)
def test_completed_rows_are_those_wholly_sampled(grid, window, kept):
    frontier, verdicts = AdaptiveFrontier(grid, window), iter(kept)
    last = [grid.slot(row, grid.columns - 1) for row in range(grid.rows)]
    known = {0}
    while not frontier.finished:
        assert frontier.completed_rows == sum(slot in known for slot in last)
        step = frontier.step()
        targets = step.plan.targets[step.plan.targets != X].tolist()
        if step.attempt is not None and grid.columns == 1:
            known.update(targets)
        else:  # a candidate completes no row
            known.update(targets if step.attempt is None else targets[:-1])
        frontier.advance(next(verdicts, False))
    assert frontier.completed_rows == grid.rows


def test_window_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        AdaptiveFrontier(Grid(3, 4), 0)


# ---- The check ----------------------------------------------------------------------------------

OLD = torch.tensor([0.5, 0.3, 0.2, 0.0])
NEW = torch.tensor([0.2, 0.4, 0.0, 0.4])


def draws(count):
    """``count`` candidates from OLD, checked against NEW, with noise of their own each."""
    candidates = torch.multinomial(OLD, count, True, generator=torch.Generator().manual_seed(1))
    rows = (count, len(OLD))
    return candidates, *check(
        NEW.expand(rows),
        OLD.expand(rows),
        candidates,
        seeds=torch.arange(count),
        positions=torch.full((count,), 24),
        attempts=torch.ones(count, dtype=torch.int64),
    )


def test_checked_tokens_are_draws_from_the_new_distribution():
    count = 100_000
    candidates, kept, tokens = draws(count)
    assert (tokens[kept] == candidates[kept]).all()
    shares = tokens.bincount(minlength=4) / count
    for share, expected in zip(shares.tolist(), NEW.tolist(), strict=True):
        assert abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / count)


def test_as_many_are_kept_as_the_distributions_share():
    count = 100_000
    _, kept, _ = draws(count)
    shared = float(torch.minimum(OLD, NEW).sum())
    assert abs(float(kept.float().mean()) - shared) <= 4 * math.sqrt(shared * (1 - shared) / count)


def test_equal_distributions_keep_every_candidate():
    candidates = torch.tensor([0, 1, 2] * 50)
    rows = (len(candidates), len(OLD))
    kept, tokens = check(
        OLD.expand(rows),
        OLD.expand(rows),
        candidates,
        seeds=torch.arange(len(candidates)),
        positions=torch.zeros(len(candidates), dtype=torch.int64),
        attempts=torch.ones(len(candidates), dtype=torch.int64),
    )
    assert kept.all()
    assert tokens.equal(candidates)


def test_greedy_keeps_the_highest_and_takes_a_new_one():
    one_hot = torch.eye(4)
    kept, tokens = check(
        one_hot[[1, 3]],
        one_hot[[1, 1]],
        torch.tensor([1, 1]),
        seeds=torch.tensor([5, 5]),
        positions=torch.tensor([0, 0]),
        attempts=torch.tensor([1, 1]),
    )
    assert kept.tolist() == [True, False]
    assert tokens.tolist() == [1, 3]


def test_every_attempt_has_noise_of_its_own():
    count = 1000
    same = dict(seeds=torch.full((count,), 3), positions=torch.full((count,), 48))
    candidates = torch.zeros(count, dtype=torch.int64)
    rows = (count, len(OLD))
    args = (NEW.expand(rows), OLD.expand(rows), candidates)
    kept, _ = check(*args, **same, attempts=torch.arange(1, count + 1))
    assert 0.3 < float(kept.float().mean()) < 0.5  # 0.2 / 0.5
    again, _ = check(*args, **same, attempts=torch.ones(count, dtype=torch.int64))
    assert again.unique().numel() == 1
