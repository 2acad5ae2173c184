"""Emu3 in the real engine: what vLLM's layers and our loading of its weights add."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cases import assert_diverse, expected
from tests.checkpoints.emu3 import generate, load_oracle, make_emu3
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import PreparedImage, prepare_images

from .conftest import Engine, assert_scores_are_raster_orders, start_engine
from .test_seeds import assert_same_on_two_ranks, needs_two_cores

pytestmark = pytest.mark.engine


# For the session: an engine that goes takes the process groups of all others with it.
@pytest.fixture(scope="session")
def emu3_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = tmp_path_factory.mktemp("emu3")
    make_emu3(path)
    return start_engine(path)


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
    for name, image in images.items():
        engine.add(name, image)
    engine.run()
    for name, image in images.items():
        tokens, passes = expected(engine.path, engine.vocabulary, image, model=oracle)
        assert_diverse(tokens)
        assert (engine.outputs[name].tokens, engine.outputs[name].steps) == (tokens, passes), name


@needs_two_cores
def test_tensor_parallel_ranks_draw_the_same(emu3_engine: Engine) -> None:
    assert_same_on_two_ranks(emu3_engine)


def test_a_finished_picture_is_scored(emu3_engine: Engine) -> None:
    engine = emu3_engine
    image = image_of(engine.path, size="96x48", window=12, guidance_scale=1.0, temperature=1.0)
    assert_scores_are_raster_orders(engine, image)
