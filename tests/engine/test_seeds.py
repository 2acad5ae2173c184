"""The same seed gives the same tokens, whoever else is in the batch."""

from __future__ import annotations

import pytest

from tests.cases import make_image
from zipar_vllm.prepare import ADAPTIVE, PreparedImage

from .conftest import Engine

pytestmark = pytest.mark.engine


def image_of(terminated: bool, seed: int, window: int = 4) -> PreparedImage:
    """Under an adaptive window where the seed is odd."""
    policy = {"policy": ADAPTIVE} if seed % 2 == 1 else {}
    return make_image(
        terminated,
        prompt=[1, 5, 2],
        window=window,
        seed=seed,
        temperature=1.0,
        top_k=50,
        **policy,
    )


def test_alone_or_in_a_full_batch(engine: Engine) -> None:
    alone = engine.generate(image_of(engine.terminated, seed=3)).tokens
    for seed in range(16):
        engine.add(str(seed), image_of(engine.terminated, seed=seed, window=1 + seed % 8))
    engine.add("again", image_of(engine.terminated, seed=3))
    engine.run()
    assert engine.outputs["again"].tokens == alone
    assert engine.outputs["3"].tokens == alone


def test_another_seed_differs(engine: Engine) -> None:
    first = engine.generate(image_of(engine.terminated, seed=3)).tokens
    second = engine.generate(image_of(engine.terminated, seed=4)).tokens
    assert first != second
