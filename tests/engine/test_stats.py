"""What `/metrics` says of the engine is what the engine does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from zipar_vllm.config import ImageParams
from zipar_vllm.engine.stats import ImageStatLogger, ImageStats

from .conftest import Engine


def test_packing_is_undone_and_other_statistics_are_left_alone() -> None:
    stats = ImageStats(tokens=12, rows=4, guidance_lanes=1)
    assert ImageStats.unpack(stats.pack()) == stats
    assert ImageStats.unpack({}) is None
    assert ImageStats.unpack({"some-adapter": 3}) is None


def test_a_step_reaches_prometheus() -> None:
    def value(name: str) -> float:
        return REGISTRY.get_sample_value(name, {"engine": "7"}) or 0.0

    logger = ImageStatLogger(None, 7)
    logger.record(None, None)
    logger.record(SimpleNamespace(running_lora_adapters={}), None)
    for stats in (ImageStats(12, 4, 1), ImageStats(0, 0, 0)):
        logger.record(SimpleNamespace(running_lora_adapters=stats.pack()), None)
    assert value("zipar:tokens_per_step_count") == 1  # a step without tokens is none
    assert value("zipar:tokens_per_step_sum") == 12
    assert value("zipar:rows_active") == 0


@pytest.mark.engine
def test_every_token_is_counted(engine: Engine, seen: list[ImageStats]) -> None:
    plain = ImageParams(rows=8, columns=8, window=2)
    guided = ImageParams(rows=6, columns=6, window=6, guidance_scale=2.0, unconditional_length=2)
    engine.add("plain", [1, 5, 2], [], plain)
    engine.add("guided", [1, 5, 2], [1, 2], guided)
    engine.run()
    assert sum(stats.tokens for stats in seen) == 8 * 8 + 6 * 6
    assert max(stats.rows for stats in seen) == 4 + 1  # ceil(8 / 2) rows, and one in raster order
    assert max(stats.guidance_lanes for stats in seen) == 1
    assert (seen[-1].rows, seen[-1].guidance_lanes) == (0, 0)
