"""What vLLM does before an engine sleeps, as far as that goes without a GPU's memory."""

from __future__ import annotations

import pytest

from tests.cases import make_image

from .conftest import Engine

pytestmark = pytest.mark.engine


def test_images_under_way_end_before_the_cache_is_discarded(engine: Engine) -> None:
    """All their blocks are free by then, and after waking the same picture is drawn as ever."""
    image, free = make_image(engine.terminated, window=2, temperature=1.0), engine.free_blocks
    expected = engine.generate(image)
    for name in "ab":
        engine.add(name, image)
    engine.step()
    engine.step()
    assert engine.free_blocks < free
    engine.core.pause_scheduler("abort", clear_cache=True)
    assert engine.free_blocks == free
    for name in "ab":
        engine.abort(name)
    engine.core.resume_scheduler()
    assert engine.generate(image) == expected
    assert engine.num_running <= 1
