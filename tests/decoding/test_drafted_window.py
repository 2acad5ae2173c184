"""Drafts against a random function in place of the model: plain decoding's tokens, always."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.visibility import UNWRITTEN
from zipar_vllm.decoding.drafted_window import DraftedProgress, make_policy
from zipar_vllm.decoding.fixed_window import fixed_window
from zipar_vllm.decoding.policy import DraftCount, Step
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.params import ImageParams

TERMINATOR = -7


class RandomModel:
    """Two layers of a model whose every number is a hash of all that it depends on.

    A layer's key at a position is made from the keys of the layer below that the position sees, so
    that an input fed too early, or under a wrong token, leaves its trace in every layer above.

    Args:
        grid: The picture's grid.
        orders: Of every position.
        num_tokens: The fewer, the oftener are drafts right by chance.
        trust: Of ten tokens, how many depend on their place alone, so that drafts are right.
        seed: Another one is another model.
    """

    def __init__(
        self, grid: Grid, orders: Sequence[int], num_tokens: int, trust: int, seed: int
    ) -> None:
        self._orders = list(orders)
        self._num_tokens = num_tokens
        self._trust = trust
        self._seed = seed
        rng = random.Random(seed)
        count = grid.num_positions
        # What slots hold before they are written must not matter to any final token.
        self.tokens = [rng.randrange(num_tokens) for _ in range(count)]
        self.tokens[0] = self._draw(0, ())  # the prefill's
        if grid.row_terminator:
            self.tokens[grid.columns :: grid.stride] = [TERMINATOR] * grid.rows
        self._keys = [[(rng.random(), layer) for _ in range(count)] for layer in range(2)]

    def run(self, step: Step) -> list[bool]:
        """Take a step; what became of its drafts."""
        inputs = list(
            zip(
                step.positions.tolist(),
                step.sources.tolist(),
                step.targets.tolist(),
                step.orders.tolist(),
                strict=True,
            )
        )
        for position, source, _, _ in inputs:
            assert self._orders[position] != UNWRITTEN
            self._keys[0][position] = (position, self.tokens[source])
        seen = [self._seen(0, position, order) for position, _, _, order in inputs]
        for (position, _, _, order), below in zip(inputs, seen, strict=True):
            self._keys[1][position] = (hash(below), order)
        previous = [self.tokens[position] for position in step.previous.tolist()]
        for position, _, target, order in inputs:
            if target >= 0:
                self.tokens[target] = self._draw(target, self._seen(1, position, order))
        drawn = [self.tokens[target] for target in step.targets[step.drafts].tolist()]
        return [one == other for one, other in zip(drawn, previous, strict=True)]

    def _seen(self, layer: int, position: int, limit: int) -> tuple[object, ...]:
        keys, orders = self._keys[layer], self._orders
        return tuple(keys[p] for p in range(position + 1) if orders[p] <= limit)

    def _draw(self, target: int, seen: tuple[object, ...]) -> int:
        place = hash((self._seed, target))
        if place % 10 < self._trust:
            return place // 10 % self._num_tokens
        return hash((place, seen)) % self._num_tokens


@st.composite
def cases(draw: st.DrawFn) -> tuple[Grid, int, RandomModel, RandomModel]:
    """A grid, a window, and twice the same model."""
    grid = draw(st.builds(Grid, st.integers(1, 6), st.integers(1, 7), st.booleans()))
    window = draw(st.integers(1, grid.columns))
    orders = fixed_window(grid, window).orders.tolist()
    numbers = (draw(st.integers(1, 4)), draw(st.integers(0, 10)), draw(st.integers(0, 999)))
    return grid, window, RandomModel(grid, orders, *numbers), RandomModel(grid, orders, *numbers)


def plain_tokens(grid: Grid, window: int, model: RandomModel) -> list[int]:
    policy = fixed_window(grid, window)
    for step in range(1, policy.num_steps):
        model.run(policy.step(step))
    return model.tokens


def run(
    grid: Grid, window: int, model: RandomModel, drafts: Sequence[int]
) -> Iterator[tuple[DraftedProgress, Step]]:
    """Decode with ``drafts`` in turn; the image and the step, after each step."""
    progress = make_policy(grid, ImageParams(window=window, drafts="auto")).start()
    number = 0
    while not progress.finished:
        progress.drafts = drafts[number % len(drafts)]
        number += 1
        step = progress.step()
        assert progress.step() is step
        progress.advance(model.run(step))
        yield progress, step


numbers_of_drafts = st.lists(st.sampled_from([0, 0, 1, 2, 3, 5, 8, 64]), min_size=1, max_size=6)


@settings(max_examples=400, deadline=None)
@given(cases(), numbers_of_drafts)
def test_tokens_are_those_of_plain_decoding(case, drafts):
    """At every moment: what counts as settled has its final value."""
    grid, window, model, same_model = case
    expected = plain_tokens(grid, window, same_model)
    policy = fixed_window(grid, window)
    for progress, _ in run(grid, window, model, drafts):
        final = progress.complete_rows * grid.stride
        assert model.tokens[:final] == expected[:final]
        for step in range(1, progress.count.plain_steps):
            for target in policy.step(step).targets.tolist():
                assert target < 0 or model.tokens[target] == expected[target]
    assert model.tokens == expected


@settings(max_examples=200, deadline=None)
@given(cases(), numbers_of_drafts)
def test_never_more_passes_nor_wider_ones_than_promised(case, drafts):
    grid, window, model, _ = case
    plain = fixed_window(grid, window)
    count, passes = DraftCount(1, 0, 0), 1
    for progress, step in run(grid, window, model, drafts):
        ahead = drafts[(passes - 1) % len(drafts)]
        looked = range(count.plain_steps, min(count.plain_steps + ahead + 1, plain.num_steps))
        assert step.num_inputs <= sum(plain.width(number) for number in looked)
        assert step.num_inputs <= (ahead + 1) * plain.max_inputs
        assert 1 <= progress.count.plain_steps - count.plain_steps <= ahead + 1
        assert count.accepted <= progress.count.accepted <= progress.count.made
        count, passes = progress.count, passes + 1
    assert count.plain_steps == plain.num_steps
    assert passes <= plain.num_steps


@settings(max_examples=200, deadline=None)
@given(cases(), numbers_of_drafts)
def test_steps_are_well_formed(case, drafts):
    grid, window, model, _ = case
    known = (
        {0, *range(grid.columns, grid.num_positions, grid.stride)} if grid.row_terminator else {0}
    )
    for _, step in run(grid, window, model, drafts):
        positions = step.positions.tolist()
        assert positions == sorted(set(positions))
        assert all(0 <= source < grid.num_positions for source in step.sources.tolist())
        # Nobody ever sees what an image before this one left behind.
        assert known.issuperset(step.sources.tolist())
        known.update(step.targets[step.sampled].tolist())
        targets = step.targets[step.drafts]
        assert set(targets.tolist()) <= set(positions)
        assert (step.targets[step.sampled] >= 0).all()
        assert len(step.attempts) == len(step.previous) == len(step.drafts)


@pytest.mark.parametrize(("window", "terminated"), [(1, True), (3, True), (6, True), (6, False)])
def test_where_every_draft_is_right_nothing_is_fed_twice(window, terminated):
    """But for rows that are opened by a proxy, which what comes behind has to wait for."""
    grid = Grid(5, 6, terminated)
    plain = fixed_window(grid, window)
    model = RandomModel(grid, plain.orders.tolist(), num_tokens=1, trust=0, seed=4)
    steps = list(run(grid, window, model, [3]))
    fed = [pair for _, s in steps for pair in zip(s.positions, s.orders, strict=True)]
    assert len(fed) == len(set(fed)) == sum(map(plain.width, range(1, plain.num_steps)))
    assert len(steps) == -(-(plain.num_steps - 1) // 4)
    count = steps[-1][0].count
    assert count.made == count.accepted > 0


def test_raster_order_by_hand():
    """1 x 4, two drafts: the first guesses are the token before; then what came out."""
    progress = make_policy(Grid(1, 4), ImageParams(window=4, drafts=2)).start()
    progress.drafts = 2
    step = progress.step()
    assert step.positions.tolist() == [0, 1, 2]
    assert step.sources.tolist() == [0, 0, 0]
    assert step.targets.tolist() == [1, 2, 3]
    assert step.orders.tolist() == [1, 2, 3]
    assert step.drafts.tolist() == [0, 1]
    assert step.previous.tolist() == [0, 0]
    progress.advance([False, True])  # token 1 was guessed wrong, so that token 2 is not final
    assert progress.count == DraftCount(plain_steps=2, made=2, accepted=0)
    step = progress.step()
    assert step.positions.tolist() == step.sources.tolist() == [1, 2]
    assert step.previous.tolist() == [2]
    progress.advance([True])
    assert progress.finished
    assert progress.complete_rows == 1
    assert progress.count == DraftCount(plain_steps=4, made=3, accepted=1)


def test_a_proxy_keeps_its_slot_while_anything_sees_it():
    """2 x 3, window 1, all drafts: position 2 is row 1's proxy until that row's first token is in.

    The row's later tokens see the true one, in the pass after.
    """
    progress = make_policy(Grid(2, 3), ImageParams(window=1, drafts=64)).start()
    progress.drafts = 64
    first = progress.step()
    assert first.positions.tolist() == [0, 1, 2, 3, 4]
    assert first.sources.tolist() == [0, 0, 0, 0, 0]
    assert first.orders.tolist() == [1, 2, 1, 2, 3]
    progress.advance([True, True, True, True])
    # Settled: token 1, the proxy, and token 3, whose place sees no more of row 0 than the proxy.
    assert progress.count.plain_steps == 3
    second = progress.step()
    assert second.positions.tolist() == [2, 4]
    assert second.targets.tolist() == [-1, 5]
    assert second.orders.tolist() == [3, 3]
    progress.advance([])
    assert progress.finished


def test_without_drafts_steps_are_the_fixed_windows_own():
    plain = fixed_window(Grid(3, 4), 2)
    progress = make_policy(plain.grid, ImageParams(window=2, drafts=8)).start()
    for number in range(1, plain.num_steps):
        assert progress.step() is plain.step(number)
        assert progress.complete_rows == plain.complete_rows(number - 1)
        progress.advance(())
    assert progress.finished
    assert progress.count == DraftCount(plain.num_steps, 0, 0)


def test_another_number_of_drafts_makes_another_step():
    progress = make_policy(Grid(3, 4), ImageParams(window=2, drafts=8)).start()
    narrow = progress.step()
    progress.drafts = 3
    assert progress.step().num_inputs > narrow.num_inputs


@pytest.mark.parametrize("window", [0, 5])
def test_a_window_that_does_not_fit_is_refused(window):
    with pytest.raises(InvalidOptionError, match=f"window: got {window}, allowed is 1 to 4"):
        make_policy(Grid(3, 4), ImageParams(window=window, drafts=4))
