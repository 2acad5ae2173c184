"""The scheduler step by step: who waits, who runs, which blocks are taken, what is released.

Tables written by hand, in the form of vllm-spyre's scheduler tests. The engine has 17 KV blocks of
32 slots and 16 inputs per step; images have terminators, so that a row of C columns takes C + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cases import make_image
from zipar_vllm.prepare import PreparedImage

from .conftest import Engine

pytestmark = pytest.mark.engine

Rows = Mapping[str, int]


@dataclass(frozen=True)
class Line:
    """What holds once a number of steps is taken.

    ``rows``: rows released so far, by image, of those that released any.
    """

    waiting: str
    running: str
    blocks: int
    rows: Rows


def take_steps(engine: Engine, images: Mapping[str, PreparedImage]) -> list[Line]:
    """Add all images, then step until nothing is left; a line per step."""
    total = engine.free_blocks
    for name, image in images.items():
        engine.add(name, image)
    lines = []
    while engine.llm.llm_engine.has_unfinished_requests():
        engine.step()
        scheduler = engine.scheduler
        lines.append(
            Line(
                waiting="".join(sorted(r.request_id[0] for r in scheduler.waiting)),
                running="".join(sorted(r.request_id[0] for r in scheduler.running)),
                blocks=total - engine.free_blocks,
                rows={
                    name: lengths[-1] // images[name].grid.stride
                    for name, lengths in engine.released.items()
                },
            )
        )
    return lines


def test_one_image_takes_its_steps_and_leaves(small: Engine) -> None:
    """3 rows x 2 columns, window 1: four steps; rows complete at steps 2, 3 and 4."""
    lines = take_steps(small, {"a": make_image(True, 3, 2, prompt=[1, 2], window=1)})
    assert lines == [
        Line("", "a", 1, {}),  # the prefill draws (0, 0)
        Line("", "a", 1, {"a": 1}),
        Line("", "a", 1, {"a": 2}),
        Line("", "", 0, {"a": 3}),
    ]


def test_the_beginning_of_an_image_is_told_when_it_happens(small: Engine) -> None:
    """Raster order over 2 rows x 100 columns, of which the third has to wait: once each, in order
    of arrival.
    """
    images = {name: make_image(True, 2, 100, prompt=[1, 2]) for name in "abc"}
    for name, image in images.items():
        small.add(name, image)
    small.step()
    assert small.begun == ["a", "b"]
    for _ in range(104):  # until the next test's third image may begin
        small.step()
    assert small.begun == ["a", "b"]
    small.run()
    assert small.begun == ["a", "b", "c"]


def test_images_wait_until_all_their_blocks_will_be_free_in_time(small: Engine) -> None:
    """Raster order over 2 rows x 100 columns: 2 + 202 slots, 7 blocks each, and there are 17.

    They are written to from steps 0, 31, 63, 95, 126, 158 and 190 on. For the third image three are
    free, so it begins when the first two have 95 of their 200 steps left; the fourth, which
    needs one block, may not overtake it, and has to wait until one is free.
    """
    wide = {name: make_image(True, 2, 100, prompt=[1, 2]) for name in "abc"}
    lines = take_steps(small, {**wide, "d": make_image(True, 1, 2, prompt=[1, 2])})
    assert len(lines) == 105 + 200
    assert lines[0] == Line("cd", "ab", 14, {})
    assert lines[98] == Line("cd", "ab", 14, {})
    assert lines[99] == Line("cd", "ab", 14, {"a": 1, "b": 1})
    assert lines[104] == Line("cd", "ab", 14, {"a": 1, "b": 1})
    assert lines[105] == Line("d", "abc", 17, {"a": 1, "b": 1})
    assert lines[198] == Line("d", "abc", 17, {"a": 1, "b": 1})
    assert lines[199] == Line("d", "c", 7, {"a": 2, "b": 2})
    assert lines[200] == Line("", "cd", 8, {"a": 2, "b": 2})
    assert lines[201] == Line("", "c", 7, {"a": 2, "b": 2, "d": 1})
    assert lines[-1] == Line("", "", 0, {"a": 2, "b": 2, "c": 2, "d": 1})


def test_starts_are_spaced_out_where_many_wait(small: Engine) -> None:
    """Five such images need 35 blocks, more than twice what there is.

    One holds its blocks for 737 steps in all, so one may start every 737 / 17 = 43.4 passes. The
    second, begun when the first has 156 steps left, inherits two blocks of it, so that five are
    free. Of them the third takes four; its others come from both.
    """
    lines = take_steps(small, {name: make_image(True, 2, 100, prompt=[1, 2]) for name in "abcde"})
    assert lines[0] == lines[43] == Line("bcde", "a", 7, {})
    assert lines[44] == lines[87] == Line("cde", "ab", 12, {})
    assert lines[88] == Line("de", "abc", 16, {})


def twelve_images() -> dict[str, PreparedImage]:
    """Guided and not, of several windows; three or four of them fill the small engine's cache."""
    images = {}
    for number, (rows, columns, window) in enumerate(
        [(2, 100, 100), (8, 20, 20), (8, 12, 4), (20, 8, 3), (2, 100, 90), (8, 20, 20)] * 2
    ):
        guidance = {"unconditional": [1], "guidance_scale": 2.0} if number % 5 == 2 else {}
        images[str(number)] = make_image(
            True,
            rows,
            columns,
            prompt=[1, 2 + number],
            window=window,
            temperature=1.0,
            seed=number,
            **guidance,
        )
    return images


@pytest.mark.parametrize("burst_seconds", [0.0, 3600.0])
def test_images_wait_for_blocks_that_are_freed_later_than_forecast(
    small: Engine, monkeypatch: pytest.MonkeyPatch, burst_seconds: float
) -> None:
    """As if each image took but a third of its steps: nothing is overwritten, nothing stuck."""
    images = twelve_images()
    alone = {name: small.generate(image) for name, image in images.items()}
    scheduler, manager = small.scheduler, small.scheduler.kv_cache_manager
    steps_left, has_to_wait = manager._steps_left, scheduler._has_to_wait
    waits = []

    def too_few() -> dict[str, int]:
        return {name: -(-steps // 3) for name, steps in steps_left().items()}

    def counted(request: Any) -> bool:
        waits.append(has_to_wait(request))
        return waits[-1]

    monkeypatch.setattr(scheduler, "burst_seconds", burst_seconds)
    monkeypatch.setattr(manager, "_steps_left", too_few)
    monkeypatch.setattr(scheduler, "_has_to_wait", counted)
    for name, image in images.items():
        small.add(name, image)
    small.run()
    assert sum(waits) > 100 if not burst_seconds else any(waits)
    assert small.outputs == alone


@pytest.mark.parametrize("burst_seconds", [0.0, 3600.0])
def test_images_on_inherited_blocks_have_the_tokens_that_they_have_alone(
    small: Engine, monkeypatch: pytest.MonkeyPatch, burst_seconds: float
) -> None:
    """Images that do not fit together, one of them aborted while blocks are shared.

    Planned pass by pass and several at once.
    """
    monkeypatch.setattr(small.scheduler, "burst_seconds", burst_seconds)
    images = twelve_images()
    alone = {name: small.generate(image) for name, image in images.items() if name != "3"}
    for name, image in images.items():
        small.add(name, image)
    inherited = 0
    for _ in range(2000):
        small.step()
        blocks = small.scheduler.kv_cache_manager.block_pool.blocks
        inherited = max(inherited, sum(block.ref_cnt > 1 for block in blocks if not block.is_null))
        if inherited and "3" in {r.request_id[:1] for r in small.scheduler.running}:
            small.abort("3")
            break
    small.run()
    assert inherited
    assert small.outputs == alone
    assert not small.scheduler._ledger._holders


def test_images_wait_while_a_step_would_be_too_wide(small: Engine) -> None:
    """Window 1 over 8 rows x 6 columns: up to 7 inputs per step and image, and 16 per step."""
    images = {name: make_image(True, 8, 6, prompt=[1, 2], window=1) for name in "abc"}
    lines = take_steps(small, images)
    steps = 6 + 7 * 1
    assert lines[0].running == "ab"
    assert all(line.waiting == "c" for line in lines[: steps - 1])
    assert lines[steps - 1] == Line("c", "", 0, {"a": 8, "b": 8})
    assert len(lines) == 2 * steps


def test_a_guided_image_holds_two_lanes(small: Engine) -> None:
    guided = make_image(True, 2, 2, prompt=[1, 2], unconditional=[1], window=2, guidance_scale=2.0)
    lines = take_steps(small, {"a": guided})
    assert lines == [
        Line("", "a", 2, {}),
        Line("", "a", 2, {"a": 1}),
        Line("", "a", 2, {"a": 1}),
        Line("", "", 0, {"a": 2}),
    ]


def test_long_prompts_are_computed_beside_running_images(small: Engine) -> None:
    """16 inputs per step: of b's prompt 14, 15 and 11 tokens beside a's prompt and its steps."""
    images = {
        "a": make_image(True, 1, 8, prompt=[1, 2]),
        "b": make_image(True, 1, 2, prompt=[1] * 40),
    }
    assert take_steps(small, images) == [
        Line("", "ab", 3, {}),
        Line("", "ab", 3, {}),
        Line("", "ab", 3, {}),  # b's first token
        Line("", "a", 1, {"b": 1}),
        Line("", "a", 1, {"b": 1}),
        Line("", "a", 1, {"b": 1}),
        Line("", "a", 1, {"b": 1}),
        Line("", "", 0, {"a": 1, "b": 1}),
    ]


def test_passes_are_planned_at_once_while_nothing_can_happen_between_them(
    small: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a: 3 rows x 6 columns, window 2, ten steps; b: raster order over 1 x 4, four steps.

    The prefills are a pass of their own; then b has three steps left, and of the six that a has
    left after them all are planned at once.
    """
    monkeypatch.setattr(small.scheduler, "burst_seconds", 3600.0)
    images = {
        "a": make_image(True, 3, 6, prompt=[1, 2], window=2),
        "b": make_image(True, 1, 4, prompt=[1, 2]),
    }
    assert take_steps(small, images) == [
        Line("", "ab", 2, {}),
        Line("", "a", 1, {"b": 1}),
        Line("", "", 0, {"a": 3, "b": 1}),
    ]
    assert {name: small.outputs[name].steps for name in "ab"} == {"a": 10, "b": 4}


def test_never_more_passes_than_the_time_allows(
    small: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass takes longer than a microsecond."""
    monkeypatch.setattr(small.scheduler, "burst_seconds", 1e-6)
    assert len(take_steps(small, {"a": make_image(True, 1, 6, prompt=[1, 2])})) == 6


def test_an_image_whose_steps_depend_on_its_draws_takes_one_at_a_time(
    small: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small.scheduler, "burst_seconds", 3600.0)
    image = make_image(True, 2, 6, prompt=[1, 2], window=2, policy="adaptive_window")
    lines = take_steps(small, {"a": image})
    assert len(lines) == small.outputs["a"].steps


def test_planning_ahead_changes_no_token(small: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of several lengths, of which some wait for others."""
    images = {
        name: make_image(True, rows, 6, prompt=[1, 2], window=window, temperature=1.0, seed=rows)
        for name, rows, window in (("a", 8, 1), ("b", 3, 6), ("c", 5, 2), ("d", 2, 3))
    }
    take_steps(small, images)
    one_by_one = {name: small.outputs[name] for name in images}
    monkeypatch.setattr(small.scheduler, "burst_seconds", 3600.0)
    assert len(take_steps(small, images)) < 20
    assert {name: small.outputs[name] for name in images} == one_by_one
