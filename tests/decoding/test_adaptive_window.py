"""The adaptive window: tables by hand, the rule as properties, the verification by counting."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.sampling import SamplingBatch
from zipar_vllm.decoding.adaptive_window import (
    AdaptiveProgress,
    RejectionSampling,
    make_policy,
    rejection_sample,
)
from zipar_vllm.decoding.fixed_window import fixed_window
from zipar_vllm.decoding.policy import NOT_SAMPLED, Drafts
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.params import ImageParams

X = NOT_SAMPLED

grids = st.builds(Grid, st.integers(1, 7), st.integers(1, 7), st.booleans())
verdicts = st.lists(st.booleans(), max_size=60)


@st.composite
def cases(draw):
    """A grid and one of its windows."""
    grid = draw(grids)
    return grid, draw(st.integers(1, grid.columns))


def table(step):
    columns = (step.positions, step.sources, step.targets)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def attempt_of(step):
    """How often its draft was drawn before; None where it has none."""
    assert len(step.drafts) <= 1
    return int(step.attempts[0]) if len(step.drafts) else None


def run(progress, accepted):
    """All steps as (position, source, target), with their attempts; verdicts as listed."""
    steps, verdicts = [], iter(accepted)
    while not progress.finished:
        step = progress.step()
        attempt = attempt_of(step)
        if attempt is not None:
            assert step.drafts.tolist() == [step.num_inputs - 1]
        steps.append((table(step), attempt))
        verified = attempt is not None and attempt > 0
        progress.advance([next(verdicts, False) if verified else False] if verified else [False])
    return steps


def test_terminated_2x4_by_hand_where_the_second_verification_passes():
    steps = run(AdaptiveProgress(Grid(2, 4, row_terminator=True), 1), [False, True])
    assert steps == [
        ([(0, 0, 1), (4, 4, 5)], 0),
        ([(1, 1, 2), (4, 4, 5)], 1),
        ([(2, 2, 3), (4, 4, 5)], 2),
        ([(3, 3, X), (5, 5, 6)], None),
        ([(6, 6, 7)], None),
        ([(7, 7, 8)], None),
    ]


def test_plain_2x4_by_hand_where_no_verification_passes():
    steps = run(AdaptiveProgress(Grid(2, 4), 2), [])
    assert steps == [
        ([(0, 0, 1)], None),
        ([(1, 1, 2), (3, 1, 4)], 0),
        ([(2, 2, 3), (3, 2, 4)], 1),
        ([(3, 3, 4)], 2),  # the row is complete: whatever comes out is accepted
        ([(4, 4, 5)], None),
        ([(5, 5, 6)], None),
        ([(6, 6, 7)], None),
    ]


@settings(max_examples=100, deadline=None)
@given(cases(), verdicts)
def test_every_step_samples_what_is_next_from_what_is_known(case, accepted):
    grid, window = case
    known = {grid.position(0, 0)}
    if grid.row_terminator:
        known |= {grid.position(row, grid.columns) for row in range(grid.rows)}
    for inputs, attempt in run(AdaptiveProgress(grid, window), accepted):
        positions = [position for position, _, _ in inputs]
        assert positions == sorted(set(positions))
        opened = inputs[-1][2] if attempt is not None else None
        for position, source, target in inputs:
            assert source in known
            assert target in (position + 1, X)
            if target != X and target != opened:
                assert target not in known
        fresh = {target for _, _, target in inputs if target != X}
        if opened is not None:
            assert opened % grid.stride == 0
            assert opened not in known or attempt > 0
        known |= fresh
    assert known == set(range(grid.num_positions))


@settings(max_examples=100, deadline=None)
@given(cases(), verdicts)
def test_bounds_on_steps_and_width(case, accepted):
    grid, window = case
    steps = run(AdaptiveProgress(grid, window), accepted)
    raster = grid.num_steps(grid.columns)
    lag = min(window + 1, grid.columns)
    assert grid.columns + (grid.rows - 1) * lag <= len(steps) + 1 <= raster
    # The scheduler reserves what a fixed window takes.
    policy = make_policy(grid, ImageParams(window=window))
    assert policy.max_inputs == fixed_window(grid, window).max_inputs
    assert max((len(inputs) for inputs, _ in steps), default=0) <= policy.width(7)


@settings(max_examples=50, deadline=None)
@given(cases())
def test_a_row_starts_one_step_after_the_window_where_every_draft_is_accepted(case):
    grid, window = case
    lag = min(window + 1, grid.columns)
    steps = run(AdaptiveProgress(grid, window), [True] * 99)
    assert len(steps) + 1 == grid.columns + (grid.rows - 1) * lag


@settings(max_examples=50, deadline=None)
@given(grids, verdicts)
def test_the_widest_window_is_raster_order(grid, accepted):
    steps = run(AdaptiveProgress(grid, grid.columns), accepted)
    fixed = fixed_window(grid, grid.columns)
    assert [inputs for inputs, _ in steps] == [
        table(fixed.step(index)) for index in range(1, fixed.num_steps)
    ]
    assert all(attempt in (None, 0) for _, attempt in steps)


@settings(max_examples=50, deadline=None)
@given(cases(), verdicts)
def test_complete_rows_are_those_wholly_sampled(case, accepted):
    grid, window = case
    progress, verdicts = AdaptiveProgress(grid, window), iter(accepted)
    last = [grid.position(row, grid.columns - 1) for row in range(grid.rows)]
    known = {0}
    while not progress.finished:
        assert progress.complete_rows == sum(position in known for position in last)
        step = progress.step()
        targets = step.targets[step.targets != X].tolist()
        if attempt_of(step) is not None and grid.columns == 1:
            known.update(targets)
        else:  # a draft completes no row
            known.update(targets if attempt_of(step) is None else targets[:-1])
        progress.advance([next(verdicts, False)])
    assert progress.complete_rows == grid.rows


def test_draws_decide_on_the_number_of_steps():
    policy = make_policy(Grid(3, 4), ImageParams(window=2))
    assert policy.num_steps is None
    assert policy is make_policy(Grid(3, 4), ImageParams(window=2, seed=5))


@pytest.mark.parametrize("window", [0, 5])
def test_a_window_that_does_not_fit_is_refused(window):
    with pytest.raises(InvalidOptionError, match=f"window: got {window}, allowed is 1 to 4"):
        make_policy(Grid(3, 4), ImageParams(window=window))


# ---- The verification ---------------------------------------------------------------------------

OLD = torch.tensor([0.5, 0.3, 0.2, 0.0])
NEW = torch.tensor([0.2, 0.4, 0.0, 0.4])


def draws(count):
    """``count`` drafts from OLD, verified against NEW, with noise of their own each."""
    drafts = torch.multinomial(OLD, count, True, generator=torch.Generator().manual_seed(1))
    rows = (count, len(OLD))
    return drafts, *rejection_sample(
        NEW.expand(rows),
        OLD.expand(rows),
        drafts,
        seeds=torch.arange(count),
        positions=torch.full((count,), 24),
        attempts=torch.ones(count, dtype=torch.int64),
    )


def test_verified_tokens_are_draws_from_the_new_distribution():
    count = 100_000
    drafts, accepted, tokens = draws(count)
    assert (tokens[accepted] == drafts[accepted]).all()
    shares = tokens.bincount(minlength=4) / count
    for share, expected in zip(shares.tolist(), NEW.tolist(), strict=True):
        assert abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / count)


def test_as_many_are_accepted_as_the_distributions_share():
    count = 100_000
    _, accepted, _ = draws(count)
    shared = float(torch.minimum(OLD, NEW).sum())
    assert abs(float(accepted.float().mean()) - shared) <= 4 * math.sqrt(
        shared * (1 - shared) / count
    )


def test_equal_distributions_accept_every_draft():
    drafts = torch.tensor([0, 1, 2] * 50)
    rows = (len(drafts), len(OLD))
    accepted, tokens = rejection_sample(
        OLD.expand(rows),
        OLD.expand(rows),
        drafts,
        seeds=torch.arange(len(drafts)),
        positions=torch.zeros(len(drafts), dtype=torch.int64),
        attempts=torch.ones(len(drafts), dtype=torch.int64),
    )
    assert accepted.all()
    assert tokens.equal(drafts)


def test_greedy_keeps_the_highest_and_takes_a_new_one():
    one_hot = torch.eye(4)
    accepted, tokens = rejection_sample(
        one_hot[[1, 3]],
        one_hot[[1, 1]],
        torch.tensor([1, 1]),
        seeds=torch.tensor([5, 5]),
        positions=torch.tensor([0, 0]),
        attempts=torch.tensor([1, 1]),
    )
    assert accepted.tolist() == [True, False]
    assert tokens.tolist() == [1, 3]


def test_every_attempt_has_noise_of_its_own():
    count = 1000
    same = dict(seeds=torch.full((count,), 3), positions=torch.full((count,), 48))
    drafts = torch.zeros(count, dtype=torch.int64)
    rows = (count, len(OLD))
    args = (NEW.expand(rows), OLD.expand(rows), drafts)
    accepted, _ = rejection_sample(*args, **same, attempts=torch.arange(1, count + 1))
    assert 0.3 < float(accepted.float().mean()) < 0.5  # 0.2 / 0.5
    again, _ = rejection_sample(*args, **same, attempts=torch.ones(count, dtype=torch.int64))
    assert again.unique().numel() == 1


def test_a_verification_keeps_what_each_image_predicted_last():
    """One image draws a new draft, the other verifies its own against a changed prediction."""
    verification = RejectionSampling(max_images=4, num_codes=4, device=torch.device("cpu"))

    def drafts(images, logits, drawn, previous, attempts):
        count = len(images)
        options = {
            "seed": np.full(count, 3),
            "temperature": np.zeros(count, dtype=np.float32),
            "top_k": np.zeros(count, dtype=np.int64),
            "top_p": np.ones(count, dtype=np.float32),
            "min_p": np.zeros(count, dtype=np.float32),
        }
        return Drafts(
            images=torch.tensor(images),
            logits=torch.tensor(logits),
            drawn=torch.tensor(drawn),
            previous=torch.tensor(previous),
            attempts=np.array(attempts),
            sampling=SamplingBatch.of(options, np.full(count, 24)),
        )

    best = torch.eye(4).tolist()
    codes, accepted = verification.verify(drafts([2], [best[1]], [1], [0], [0]))
    assert (codes.tolist(), accepted) == ([1], [False])  # a new draft has to be verified yet
    codes, accepted = verification.verify(
        drafts([0, 2], [best[3], best[1]], [3, 1], [0, 1], [0, 1])
    )
    assert (codes.tolist(), accepted) == ([3, 1], [False, True])
    codes, accepted = verification.verify(drafts([0], [best[2]], [2], [3], [1]))
    assert (codes.tolist(), accepted) == ([2], [False])
