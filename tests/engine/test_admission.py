"""Admission by forecast: tables by hand, then an engine made of numbers that checks every write."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipar_vllm.core.grid import Grid
from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.decoding.policy import Progress
from zipar_vllm.engine.admission import (
    FREE,
    NEVER,
    BlockLedger,
    Pace,
    block_passes,
    is_crowded,
)
from zipar_vllm.params import ImageParams

WINDOWS = {
    # Slots 0 and 1 are the prompt's, then come rows of 3 tokens and a terminator, 4 slots a block;
    # of the last block no slot is ever written to.
    1: [0, 1, 2, 4],
    2: [0, 2, 4, 6],
    3: [0, 3, 6, 8],
}


@pytest.mark.parametrize("window", WINDOWS)
def test_a_block_is_needed_from_the_step_that_first_writes_to_it(window: int) -> None:
    params = ImageParams(temperature=1.0, window=window)
    job = ImageJob(Grid(3, 3, True), params, lane_prompts=(2,))
    assert job.block_steps(4).tolist() == WINDOWS[window]
    guided = ImageJob(job.grid, params, lane_prompts=(2, 2))
    assert guided.block_steps(4).tolist() == WINDOWS[window] * 2


@pytest.mark.parametrize("options", [{"policy": "adaptive_window"}, {"drafts": 2}])
def test_all_may_be_needed_at_once_where_steps_depend_on_draws(options: dict[str, object]) -> None:
    params = ImageParams(temperature=1.0, window=2, **options)  # type: ignore[arg-type]
    assert ImageJob(Grid(3, 3, True), params, (2,)).block_steps(4).tolist() == [0] * 4


def test_a_picture_to_score_is_fed_faster_than_its_orders_tell() -> None:
    job = ImageJob(Grid(3, 3, True), ImageParams(window=3), (2,), picture=tuple(range(9)))
    assert job.block_steps(4).tolist() == [0] * 4


def test_blocks_pass_from_whoever_ends_before_they_are_needed() -> None:
    """a ends after 5 steps and b after 9; c writes to its blocks from steps 0, 5, 8 and 9 on."""
    ledger, steps = BlockLedger(), [0, 5, 8, 9]
    needs = np.array(steps)
    assert ledger.find(needs, 3, {}) is None
    assert ledger.find(needs, 4, {}).tolist() == [FREE] * 4  # type: ignore[union-attr]
    ledger.admit("a", np.zeros(1, dtype=np.int64), [10])
    ledger.admit("b", np.zeros(2, dtype=np.int64), [20, 21])
    left = {"a": 5, "b": 9}
    found = ledger.find(needs, 2, left)
    assert found is not None
    assert found.tolist() == [FREE, FREE, 10, 20]  # the latest from b, the one before from a
    assert ledger.find(needs, 1, left) is None
    ledger.admit("c", needs, [30, 31, 10, 20])
    assert [ledger.first_wait(name) for name in "abc"] == [NEVER, NEVER, 8]
    # d finds what c will leave, and b's other block; a's only one is c's first.
    d = np.array([0, 4, 20, 20, 20, 20, 20])
    found = ledger.find(d, 2, {**left, "c": 12})
    assert found is not None
    assert sorted(found.tolist()) == [FREE, FREE, 10, 20, 21, 30, 31]
    ledger.admit("d", d, [40, 41, 10, 20, 21, 30, 31])
    ledger.end("c")  # aborted: d still waits for those whom c waited for
    assert ledger.first_wait("d") == 20
    ledger.end("a")
    assert ledger.first_wait("d") == 20
    ledger.end("b")
    assert ledger.first_wait("d") == NEVER
    ledger.end("d")
    ledger.end("d")  # nothing is left of it
    assert ledger.find(d, 7, {}) is not None


def test_what_an_aborted_heir_leaves_may_be_inherited_again() -> None:
    ledger = BlockLedger()
    needs = np.array([0, 7])
    ledger.admit("a", needs, [1, 2])
    ledger.admit("b", needs, [3, 1])
    ledger.end("b")
    found = ledger.find(needs, 1, {"a": 7})
    assert found is not None
    assert found.tolist() == [FREE, 2]
    ledger.admit("c", needs, [3, 2])
    found = ledger.find(np.array([0, 7, 7]), 2, {"a": 7})
    assert found is not None
    assert found.tolist() == [FREE, 1, FREE]


def test_a_crowd_needs_twice_the_cache_and_more_than_as_many_as_may_run() -> None:
    assert not is_crowded([5, 5, 10], most_images=8, usable=10)
    assert is_crowded([5, 5, 10, 1], most_images=8, usable=10)
    assert is_crowded([5, 5, 10, 1], most_images=3, usable=10)
    assert not is_crowded([5, 5, 10, 1], most_images=2, usable=10)


def test_an_image_s_blocks_are_counted_in_each_of_its_steps() -> None:
    assert block_passes(np.array([0, 3, 6, 8]), 9) == 9 + 6 + 3 + 1
    assert block_passes(np.zeros(4, dtype=np.int64), None) == 0


def test_starts_are_put_off_by_what_the_cache_has_to_do_for_those_before() -> None:
    pace = Pace()
    assert pace.is_reached(0)
    pace.start(0, 2.5, alone=True)
    assert [pace.is_reached(now) for now in (2, 3)] == [False, True]
    pace.start(1, 2.5, alone=False)  # before its turn, as nobody else waited
    assert [pace.is_reached(now) for now in (4, 5)] == [False, True]
    pace.start(4, 1, alone=True)
    assert [pace.is_reached(now) for now in (4, 5)] == [False, True]


@dataclass
class Image:
    """A running image and what it wrote."""

    name: str
    job: ImageJob
    progress: Progress
    blocks: list[int]
    step: int = 0
    written: set[int] = field(default_factory=set)


class Room:
    """An engine without a model: it keeps who wrote to each block last.

    Args:
        pool: Blocks.
        block_size: Slots of each.
        lag: Steps after an image's last one until its blocks are free.
    """

    def __init__(self, pool: int, block_size: int, lag: int) -> None:
        self.ledger, self.pace = BlockLedger(), Pace()
        self.block_size, self.lag = block_size, lag
        self.shares = dict.fromkeys(range(pool), 0)
        self.writers: dict[int, str] = {}
        self.running: list[Image] = []
        self.ended: list[tuple[int, Image]] = []  # with the step that frees their blocks
        self.begun: list[str] = []
        self.now = self.stalls = 0

    def admit(self, name: str, job: ImageJob) -> bool:
        steps = job.block_steps(self.block_size)
        free = [block for block, shares in self.shares.items() if not shares]
        left = {
            image.name: image.job.policy.num_steps - image.step
            for image in self.running
            if image.job.policy.num_steps is not None
        }
        found = self.ledger.find(steps, len(free), left)
        if found is None or (self.running and not self.pace.is_reached(self.now)):
            return False
        passes = block_passes(steps, job.policy.num_steps) / len(self.shares)
        self.pace.start(self.now, passes, alone=not self.running)
        blocks = [free.pop() if block == FREE else block for block in found.tolist()]
        self.ledger.admit(name, steps, blocks)
        for block in blocks:
            self.shares[block] += 1
        self.running.append(Image(name, job, job.policy.start(), blocks))
        self.begun.append(name)
        return True

    def abort(self, image: Image) -> None:
        self.running.remove(image)
        self.ledger.end(image.name)
        self.free(image)

    def free(self, image: Image) -> None:
        for block in image.blocks:
            self.shares[block] -= 1

    def step(self, queue: deque[tuple[str, ImageJob]], late: set[str]) -> list[str]:
        """A pass: all running images but the late ones, then who fits; the names of who ended."""
        for image in [image for when, image in self.ended if when == self.now]:
            self.free(image)
        going = []
        for eldest, image in enumerate(self.running):
            if self.ledger.first_wait(image.name) <= image.step:
                self.stalls += 1
                assert eldest > 0, "the eldest image has to wait"
            elif image.name not in late:
                going.append(image)
        while queue and self.admit(*queue[0]):
            queue.popleft()
            going.append(self.running[-1])
        for image in going:
            self.write(image)
        for image in going:
            for block in image.written:
                assert self.writers[block] == image.name, f"{image.name} lost block {block}"
        self.now += 1
        ended = [image for image in going if self.is_over(image)]
        for image in ended:
            self.running.remove(image)
            self.ledger.end(image.name)
            self.ended.append((self.now + self.lag, image))
        return [image.name for image in ended]

    def write(self, image: Image) -> None:
        """Write the step's keys, as the policy itself feeds them."""
        first_block = 0
        step = image.progress.step() if image.step else None
        for prompt, count in zip(
            image.job.lane_prompts, image.job.lane_blocks(self.block_size), strict=True
        ):
            slots = range(prompt) if step is None else (step.positions + prompt).tolist()
            for slot in slots:
                block = image.blocks[first_block + slot // self.block_size]
                self.writers[block] = image.name
                image.written.add(block)
            first_block += count
        if step is not None:
            verdicts = [random.Random(f"{image.name} {image.step}").random() < 0.5]
            image.progress.advance(verdicts * len(step.drafts))
        image.step += 1

    @staticmethod
    def is_over(image: Image) -> bool:
        num_steps = image.job.policy.num_steps
        return image.progress.finished if num_steps is None else image.step == num_steps


@st.composite
def jobs(draw: st.DrawFn) -> ImageJob:
    grid = Grid(draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.booleans()))
    kind = draw(st.sampled_from(["fixed", "fixed", "fixed", "adaptive", "scored"]))
    window = draw(st.integers(1, grid.columns))
    policy = "adaptive_window" if kind == "adaptive" else "fixed_window"
    params = ImageParams(temperature=1.0, window=window, policy=policy)
    prompts = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=2)))
    picture = tuple(range(grid.num_sampled)) if kind == "scored" else ()
    return ImageJob(grid, params, prompts, picture=picture)


@given(
    images=st.lists(jobs(), min_size=2, max_size=12),
    block_size=st.integers(1, 8),
    spare=st.floats(0, 2),
    lag=st.integers(0, 2),
    lateness=st.sampled_from([0.0, 0.0, 0.3, 0.7]),
    aborts=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 999),
)
@settings(max_examples=200, deadline=None)
def test_nothing_is_overwritten_preempted_or_stuck(
    images: list[ImageJob],
    block_size: int,
    spare: float,
    lag: int,
    lateness: float,
    aborts: float,
    seed: int,
) -> None:
    """Whatever falls behind and whoever gives up; and where nothing falls behind, nothing waits."""
    rng = random.Random(seed)
    pool = int(max(job.num_blocks(block_size) for job in images) * (1 + spare))
    room = Room(pool, block_size, lag)
    queue = deque((str(number), job) for number, job in enumerate(images))
    served, aborted = set[str](), set[str]()
    while queue or room.running:
        late = {image.name for image in room.running if rng.random() < lateness}
        served.update(room.step(queue, late))
        for image in room.running.copy():
            if rng.random() < aborts:
                room.abort(image)
                aborted.add(image.name)
        assert room.now < 20_000, "stuck"
    assert room.begun == [str(number) for number in range(len(images))]
    assert served == set(room.begun) - aborted
    if not lateness:
        assert room.stalls == 0
