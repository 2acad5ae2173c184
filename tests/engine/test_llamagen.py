"""LlamaGen in the real engine: our rotary embedding of rows and columns, in vLLM's layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cases import assert_diverse
from tests.checkpoints.llamagen import Transformer, load_oracles
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import PreparedImage, prepare_images

from .conftest import Engine, assert_batch_is_the_oracles

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session")
def llamagen_engine(family_engines: Callable[[str], Engine]) -> Engine:
    return family_engines("llamagen")


@pytest.fixture(scope="session")
def oracle(llamagen_engine: Engine) -> Transformer:
    return load_oracles(llamagen_engine.path)[0]


def image_of(path: Path, prompt: str = "207", **options: Any) -> PreparedImage:
    return prepare_images(load_image_model(path), prompt, ImageOptions(**options), [7])[0]


@pytest.mark.parametrize("guidance", [1.0, 4.0], ids=["unguided", "guided"])
def test_raster_order_is_the_published_architectures(
    llamagen_engine: Engine, oracle: Transformer, guidance: float
) -> None:
    engine = llamagen_engine
    image = image_of(engine.path, window=8, temperature=0.0, guidance_scale=guidance)
    tokens = engine.generate(image).tokens
    assert_diverse(tokens)
    assert tokens == oracle.generate(207, guidance)


def test_windows_in_a_batch(llamagen_engine: Engine, oracle: Transformer) -> None:
    """Guided and not, greedy and sampled."""
    engine = llamagen_engine
    images = {
        f"{window} {guidance}": image_of(
            engine.path,
            "goldfish" if window == 1 else "360",
            window=window,
            guidance_scale=guidance,
            temperature=float(guidance != 1),
            negative_prompt="tench" if window == 4 else None,
        )
        for window in (1, 4, 8)
        for guidance in (1.0, 4.0)
    }
    assert_batch_is_the_oracles(engine, images, oracle)
