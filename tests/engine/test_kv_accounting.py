"""Blocks: exact demand, all-or-nothing admission, and nothing lost by aborts."""

from __future__ import annotations

import random

import pytest

from tests.cases import make_image
from zipar_vllm.prepare import PreparedImage

from .conftest import Engine

pytestmark = pytest.mark.engine


GUIDED = {"prompt": [1, 5, 2], "unconditional": [1, 2], "window": 4, "guidance_scale": 2.0}


def random_image(rng: random.Random, terminated: bool) -> PreparedImage:
    rows, columns = rng.randint(1, 10), rng.randint(1, 12)
    unconditional = [1, *[5] * rng.randint(0, 40), 2] if rng.random() < 0.5 else []
    params = {
        "window": rng.randint(1, columns),
        "seed": rng.getrandbits(62),
        "temperature": 1.0,
        "guidance_scale": rng.uniform(0, 5) if unconditional else 1.0,
    }
    prompt = [1, *[6] * rng.randint(0, 60), 2]
    return make_image(
        terminated, rows, columns, prompt=prompt, unconditional=unconditional, **params
    )


def test_every_block_returns_after_random_aborts(engine: Engine) -> None:
    rng = random.Random(5)
    free = engine.free_blocks
    aborted, wanted = set(), {}
    for index in range(200):
        name = str(index)
        wanted[name] = random_image(rng, engine.terminated)
        engine.add(name, wanted[name])
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
    assert engine.num_running <= 1  # the last one is forgotten by the next step


def test_abort_frees_both_lanes_at_once(engine: Engine) -> None:
    free = engine.free_blocks
    engine.add("a", make_image(engine.terminated, **GUIDED))
    engine.step()
    engine.step()
    assert engine.free_blocks < free
    engine.abort("a")
    assert engine.free_blocks == free


def test_rows_are_released_in_raster_order(engine: Engine) -> None:
    image = make_image(engine.terminated, window=2, temperature=1.0)
    engine.add("a", image)
    engine.run()
    assert engine.released["a"] == [image.grid.stride * row for row in range(1, 9)]


def test_full_cache_makes_requests_wait_and_all_finish(small: Engine) -> None:
    free = small.free_blocks
    for index in range(7):
        small.add(str(index), make_image(True, **GUIDED))
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
    small.add("big", make_image(True, 30, 20, prompt=[1, 2]))
    small.add("small", make_image(True, 2, 2, prompt=[1, 2]))
    small.step()
    assert small.failed == {"big": "error"}
    small.run()
    assert "small" in small.outputs


def test_a_step_wider_than_the_budget_is_refused(small: Engine) -> None:
    """Window 1 over 16 columns has 17 inputs per step, the budget is 16; the cache would do."""
    small.add("wide", make_image(True, 20, 16, prompt=[1, 2], window=1))
    small.step()
    assert small.failed == {"wide": "error"}
