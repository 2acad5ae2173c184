"""Blocks: exact demand, all-or-nothing admission, and nothing lost by aborts."""

from __future__ import annotations

import random

import pytest

from zipar_vllm.config import ImageParams

from .conftest import Engine, start_engine

pytestmark = pytest.mark.engine


def random_request(rng: random.Random) -> tuple[list[int], list[int], ImageParams]:
    rows, columns = rng.randint(1, 10), rng.randint(1, 12)
    unconditional = [1, *[5] * rng.randint(0, 40), 2] if rng.random() < 0.5 else []
    params = ImageParams(
        rows=rows,
        columns=columns,
        window=rng.randint(1, columns),
        seed=rng.getrandbits(62),
        guidance_scale=rng.uniform(0, 5) if unconditional else 1.0,
        unconditional_length=len(unconditional),
    )
    return [1, *[6] * rng.randint(0, 60), 2], unconditional, params


def test_every_block_returns_after_random_aborts(engine: Engine) -> None:
    rng = random.Random(5)
    free = engine.free_blocks
    aborted, wanted = set(), {}
    for index in range(200):
        name = str(index)
        wanted[name] = random_request(rng)
        engine.add(name, *wanted[name])
        for _ in range(rng.randint(0, 4)):
            engine.step()
        unfinished = sorted(set(wanted) - aborted - set(engine.outputs))
        if unfinished and rng.random() < 0.4:
            victim = rng.choice(unfinished)
            engine.abort(victim)
            aborted.add(victim)
    engine.run()
    assert engine.free_blocks == free
    assert not engine.failed
    assert len(aborted) > 20
    assert set(engine.outputs) == set(wanted) - aborted
    assert len(engine.runner._table) <= 1  # the last one is forgotten by the next step


def test_abort_frees_both_lanes_at_once(engine: Engine) -> None:
    free = engine.free_blocks
    params = ImageParams(rows=8, columns=8, window=4, guidance_scale=2.0, unconditional_length=2)
    engine.add("a", [1, 5, 2], [1, 2], params)
    engine.step()
    engine.step()
    assert engine.free_blocks < free
    engine.abort("a")
    assert engine.free_blocks == free


def test_rows_are_released_in_raster_order(engine: Engine) -> None:
    engine.add("a", [1, 5, 2], [], ImageParams(rows=8, columns=8, window=2))
    engine.run()
    stride = 8 + (engine.tokens.row_terminator is not None)
    assert engine.released["a"] == [stride * row for row in range(1, 9)]


# Until the end of the session: an engine that goes takes what all in the process share with it.
@pytest.fixture(scope="session")
def small(tiny_models: dict[bool, object]) -> Engine:
    """An engine whose cache holds two guided images at a time, and little more."""
    return start_engine(
        tiny_models[True], num_gpu_blocks_override=18, max_num_batched_tokens=16, max_model_len=512
    )


def test_full_cache_makes_requests_wait_and_all_finish(small: Engine) -> None:
    free = small.free_blocks
    params = ImageParams(rows=8, columns=8, window=4, guidance_scale=2.0, unconditional_length=2)
    for index in range(7):
        small.add(str(index), [1, 5, 2], [1, 2], params)
    most = 0
    while small.llm.llm_engine.has_unfinished_requests():
        small.step()
        most = max(most, len(small.scheduler.running))
    assert most == 2
    assert len(small.outputs) == 7
    assert len({tuple(o.tokens) for o in small.outputs.values()}) == 1
    assert small.free_blocks == free
    assert not small.failed


def test_what_can_never_fit_is_refused_at_once(small: Engine) -> None:
    small.failed.clear()
    small.add("big", [1, 2], [], ImageParams(rows=30, columns=20, window=20))
    small.add("small", [1, 2], [], ImageParams(rows=2, columns=2, window=2))
    small.step()
    assert small.failed == {"big": "error"}
    small.run()
    assert "small" in small.outputs


def test_a_step_wider_than_the_budget_is_refused(small: Engine) -> None:
    """Window 1 over 16 columns has 17 inputs a step, the budget is 16; the cache would do."""
    small.failed.clear()
    small.add("wide", [1, 2], [], ImageParams(rows=20, columns=16, window=1))
    small.step()
    assert small.failed == {"wide": "error"}
