"""The engine under an adaptive window: the reference decoder's tokens, however it is driven."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cases import make_image, mixed_images
from zipar_vllm.engine.borrowed import ImageStats
from zipar_vllm.prepare import ADAPTIVE

from .conftest import Engine, Finished
from .test_exactness import assert_expected, run_as_they_arrive

pytestmark = pytest.mark.engine


def test_in_a_batch_with_fixed_windows(engine: Engine) -> None:
    images = mixed_images(engine.terminated, adaptive=True)
    run_as_they_arrive(engine, images)
    assert_expected(engine, images, engine.outputs)


def test_row_by_row(engine: Engine) -> None:
    """Complete rows are released at once, in raster order."""
    image = make_image(engine.terminated, window=1, policy=ADAPTIVE)
    engine.generate(image)
    stride = image.grid.stride
    lengths = engine.released["alone"]
    assert lengths == [stride * (row + 1) for row in range(8)]


@pytest.mark.parametrize("kind", ["finished", "aborted"])
def test_scheduled_one_step_ahead(engine: Engine, kind: str) -> None:
    """As vLLM does where scheduling is asynchronous: a step is planned before the last is known."""
    images = mixed_images(engine.terminated, adaptive=True)
    for index, (_, image) in enumerate(images):
        engine.add(str(index), image)
    core, results = engine.core, {}
    for number, outputs in enumerate(one_step_ahead(core)):
        if kind == "aborted" and number == 5:
            core.abort_requests([name for name in core.scheduler.requests if name[0] in "01"])
        for output in outputs:
            result = results.setdefault(output.request_id[0], Finished([], 0))
            result.tokens += output.new_token_ids
            if output.kv_transfer_params:
                result.steps = output.kv_transfer_params["zipar_steps"]
    front = engine.llm.llm_engine.output_processor  # which has heard nothing of all this
    front.abort_requests(list(front.request_states), internal=True)
    assert_expected(engine, images, results, skip="01" if kind == "aborted" else "")


def one_step_ahead(core: Any) -> Iterator[list[Any]]:
    """Drive an engine core, planning and running each step before the last one's output is read."""
    waiting = None
    for _ in range(2000):
        scheduled = core.scheduler.schedule()
        result = core.model_executor.execute_model(scheduled)
        if waiting is not None:
            outputs = core.scheduler.update_from_output(*waiting)
            yield [output for client in outputs.values() for output in client.outputs]
        waiting = (scheduled, result)
        if not core.scheduler.has_requests():
            return
    raise AssertionError("still running")


def test_every_token_and_every_trial_is_counted(engine: Engine, seen: list[ImageStats]) -> None:
    got = engine.generate(make_image(engine.terminated, window=2, policy=ADAPTIVE))
    # A row that waits is drawn again in every step of its wait.
    waited = got.steps - (8 + 7 * 2)
    assert 7 < waited < 7 * 6  # some rows wait for more than one check, some start before the end
    assert sum(stats.tokens for stats in seen) == 8 * 8 + waited
    assert (seen[-1].rows, seen[-1].guidance_lanes) == (0, 0)
