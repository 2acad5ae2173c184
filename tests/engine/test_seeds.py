"""The same seed gives the same tokens, whoever else is in the batch."""

from __future__ import annotations

import pytest

from zipar_vllm.config import ImageParams

from .conftest import Engine

pytestmark = pytest.mark.engine


def params(seed: int, window: int = 4) -> ImageParams:
    return ImageParams(rows=8, columns=8, window=window, seed=seed, temperature=1.0, top_k=50)


def test_alone_or_in_a_full_batch(engine: Engine) -> None:
    alone = engine.generate([1, 5, 2], [], params(seed=3)).tokens
    for seed in range(16):
        engine.add(str(seed), [1, 5, 2], [], params(seed, window=1 + seed % 8))
    engine.add("again", [1, 5, 2], [], params(seed=3))
    engine.run()
    assert engine.outputs["again"].tokens == alone
    assert engine.outputs["3"].tokens == alone


def test_another_seed_differs(engine: Engine) -> None:
    first = engine.generate([1, 5, 2], [], params(seed=3)).tokens
    second = engine.generate([1, 5, 2], [], params(seed=4)).tokens
    assert first != second
