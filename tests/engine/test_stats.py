"""What `/metrics` says of the engine is what the engine does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from tests.cases import make_image
from zipar_vllm.engine.borrowed import ImageStats, get_stats, put_stats
from zipar_vllm.engine.stats import ImageStatLogger

from .conftest import Engine


def carrier(stats: ImageStats | None = None, **sent: int) -> SimpleNamespace:
    """vLLM's statistics, with ours put into them."""
    found = SimpleNamespace(running_lora_adapters=sent)
    if stats is not None:
        put_stats(found, stats)
    return found


def test_statistics_arrive_and_those_of_others_are_left_alone() -> None:
    stats = ImageStats(tokens=12, passes=3, rows=4, guidance_lanes=1)
    assert get_stats(carrier(stats)) == stats
    assert get_stats(carrier()) is None
    assert get_stats(carrier(adapter=3)) is None


def test_a_step_reaches_prometheus() -> None:
    def value(name: str) -> float:
        return REGISTRY.get_sample_value(name, {"engine": "7"}) or 0.0

    logger = ImageStatLogger(None, 7)
    logger.record(None, None)
    logger.record(carrier(), None)
    for stats in (ImageStats(12, 3, 4, 1), ImageStats(0, 0, 0, 0)):
        logger.record(carrier(stats), None)
    assert value("zipar:tokens_per_step_count") == 3  # a pass without tokens is none
    assert value("zipar:tokens_per_step_sum") == 12
    assert value("zipar:rows_active") == 0


@pytest.mark.engine
def test_every_token_is_counted(engine: Engine, seen: list[ImageStats]) -> None:
    guided = make_image(
        engine.terminated, 6, 6, unconditional=[1, 2], guidance_scale=2.0, temperature=1.0
    )
    engine.add("plain", make_image(engine.terminated, window=2, temperature=1.0))
    engine.add("guided", guided)
    engine.run()
    assert sum(stats.tokens for stats in seen) == 8 * 8 + 6 * 6
    assert max(stats.rows for stats in seen) == 4 + 1  # ceil(8 / 2) rows, and one in raster order
    assert max(stats.guidance_lanes for stats in seen) == 1
    assert (seen[-1].rows, seen[-1].guidance_lanes) == (0, 0)
