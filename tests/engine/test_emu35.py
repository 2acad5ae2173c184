"""Emu3.5 in the real engine: what vLLM's layers and our loading of its weights add."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cases import assert_diverse
from tests.checkpoints.emu35 import END_OF_IMAGE, END_OF_ROW, generate, load_oracle
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import PreparedImage, prepare_images

from .conftest import Engine, assert_batch_is_the_oracles, assert_scores_are_raster_orders

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session")
def emu35_engine(family_engines: Callable[[str], Engine]) -> Engine:
    return family_engines("emu3.5")


def image_of(path: Path, **options: Any) -> PreparedImage:
    return prepare_images(load_image_model(path), "a red apple", ImageOptions(**options), [7])[0]


@pytest.mark.parametrize("guidance", [1.0, 5.0], ids=["unguided", "guided"])
def test_raster_order_is_the_authors_loop(emu35_engine: Engine, guidance: float) -> None:
    image = image_of(
        emu35_engine.path, size="192x96", window=12, temperature=0.0, guidance_scale=guidance
    )
    tokens = emu35_engine.generate(image).tokens
    assert_diverse(tokens)
    picture = generate(load_oracle(emu35_engine.path), image.prompts, 6, 12, guidance)
    assert picture.pop() == END_OF_IMAGE  # where our last row ends as all do, unseen
    assert tokens == [*picture, END_OF_ROW]


def test_sizes_and_windows_in_a_batch(emu35_engine: Engine) -> None:
    """Guided and not, greedy and sampled."""
    engine, oracle = emu35_engine, load_oracle(emu35_engine.path)
    images = {
        f"{size} {guidance}": image_of(
            engine.path,
            size=size,
            window=window,
            guidance_scale=guidance,
            temperature=float(guidance != 1),
            negative_prompt="dogs" if window == 4 else None,
        )
        for size, window in {"128x128": 1, "192x96": 4, "80x160": 5}.items()
        for guidance in (1.0, 5.0)
    }
    assert_batch_is_the_oracles(engine, images, oracle)


def test_the_published_size_takes_the_published_steps(emu35_engine: Engine) -> None:
    engine = emu35_engine
    image = image_of(engine.path, size="1024x1024", window=5, guidance_scale=1.0, temperature=0.0)
    done = engine.generate(image)
    assert (len(done.tokens), done.steps) == (64 * 65, 379)


def test_a_finished_picture_is_scored(emu35_engine: Engine) -> None:
    engine = emu35_engine
    image = image_of(engine.path, size="192x96", window=12, guidance_scale=1.0, temperature=1.0)
    assert_scores_are_raster_orders(engine, image)
