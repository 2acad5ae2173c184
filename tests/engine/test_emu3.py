"""Emu3 in the real engine: what vLLM's layers and our loading of its weights add."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cases import assert_diverse
from tests.checkpoints.emu3 import generate, load_oracle
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import PreparedImage, prepare_images

from .conftest import Engine, assert_batch_is_the_oracles, assert_scores_are_raster_orders

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session")
def emu3_engine(family_engines: Callable[[str], Engine]) -> Engine:
    return family_engines("emu3")


def image_of(path: Path, **options: Any) -> PreparedImage:
    return prepare_images(load_image_model(path), "a red apple.", ImageOptions(**options), [7])[0]


def test_raster_order_is_transformers_generate(emu3_engine: Engine) -> None:
    image = image_of(emu3_engine.path, size="96x48", window=12, temperature=0.0)
    tokens = emu3_engine.generate(image).tokens
    assert_diverse(tokens)
    oracle = load_oracle(emu3_engine.path)
    assert tokens == generate(oracle, image.prompts, rows=6, columns=12, guidance=3.0)


def test_sizes_and_windows_in_a_batch(emu3_engine: Engine) -> None:
    """Guided and not, greedy and sampled."""
    engine, oracle = emu3_engine, load_oracle(emu3_engine.path)
    images = {
        f"{size} {guidance}": image_of(
            engine.path,
            size=size,
            window=window,
            guidance_scale=guidance,
            temperature=float(guidance != 1),
            negative_prompt="dogs" if window == 4 else None,
        )
        for size, window in {"64x64": 1, "96x48": 4, "40x80": 5}.items()
        for guidance in (1.0, 3.0)
    }
    assert_batch_is_the_oracles(engine, images, oracle)


def test_published_sizes_take_the_published_steps(emu3_engine: Engine) -> None:
    engine = emu3_engine
    published = {"720x720": (90 * 91, 713), "960x544": (68 * 121, 589)}
    for size in published:
        engine.add(size, image_of(engine.path, size=size, window=7, guidance_scale=1.0))
    engine.run()
    done = {size: engine.outputs[size] for size in published}
    assert {size: (len(one.tokens), one.steps) for size, one in done.items()} == published


def test_a_finished_picture_is_scored(emu3_engine: Engine) -> None:
    engine = emu3_engine
    image = image_of(engine.path, size="96x48", window=12, guidance_scale=1.0, temperature=1.0)
    assert_scores_are_raster_orders(engine, image)
