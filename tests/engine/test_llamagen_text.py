"""LlamaGen's captions in the real engine: prompts that are embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cases import assert_diverse, expected
from tests.checkpoints.llamagen import (
    CODES,
    FEATURES,
    Transformer,
    encode_padded,
    load_oracles,
)
from zipar_vllm.models.base import ImageModel, Prompts
from zipar_vllm.models.registry import load_image_model, load_spec
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import PreparedImage, prepare_images

from .conftest import Engine

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session")
def text_engine(family_engines: Callable[[str], Engine]) -> Engine:
    return family_engines("llamagen-text")


@pytest.fixture(scope="session")
def model(text_engine: Engine) -> ImageModel:
    return load_image_model(text_engine.path)


@pytest.fixture(scope="session")
def oracle(text_engine: Engine) -> Transformer:
    return load_oracles(text_engine.path, side=32, features=FEATURES)[0]


def image_of(model: ImageModel, prompt: str = "a red apple", **options: Any) -> PreparedImage:
    return prepare_images(model, prompt, ImageOptions(**options), [7])[0]


def reference(path: Path, oracle: Transformer, image: PreparedImage) -> tuple[list[int], int]:
    """The reference decoder's picture, whose model has the prompts' embeddings behind the codes."""
    prompts = image.prompts
    assert prompts.embeddings is not None
    oracle.rows, oracle.prompt = prompts.embeddings, len(prompts.conditional)
    ids = [CODES + row for row in range(len(prompts.embeddings))]
    count = len(prompts.conditional)
    as_ids = replace(image, prompts=Prompts(ids[:count], ids[count:]))
    return expected(path, load_spec(path).vocabulary, as_ids, model=oracle)


def test_windows_in_a_batch(text_engine: Engine, model: ImageModel, oracle: Transformer) -> None:
    """Guided and not, greedy and sampled, with prompts of unlike lengths."""
    images = {
        f"{window} {guidance}": image_of(
            model,
            "a red apple " * window,
            window=window,
            guidance_scale=guidance,
            temperature=float(window == 4),
        )
        for window, guidance in ((1, 7.5), (4, 7.5), (8, 1.0))
    }
    for name, image in images.items():
        text_engine.add(name, image)
    text_engine.run()
    for name, image in images.items():
        tokens, passes = reference(text_engine.path, oracle, image)
        assert_diverse(tokens)
        assert text_engine.outputs[name].tokens == tokens, name
        assert text_engine.outputs[name].steps == passes


def test_a_default_picture_in_the_published_steps(
    text_engine: Engine, model: ImageModel, oracle: Transformer
) -> None:
    """Its first row, which no window changes, is the authors', padding and all."""
    finished = text_engine.generate(image_of(model, temperature=0.0))
    assert finished.steps == 528
    assert_diverse(finished.tokens)
    features, kept = encode_padded(text_engine.path.parent / "t5", "a red apple")
    assert finished.tokens[:32] == oracle.generate_text(features, kept, guidance=7.5, count=32)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_raster_order_is_the_authors(
    text_engine: Engine, model: ImageModel, oracle: Transformer, guidance: float
) -> None:
    """Token for token: each is what the oracle draws after those before it."""
    image = image_of(model, window=32, guidance_scale=guidance, temperature=0.0)
    tokens = text_engine.generate(image).tokens
    assert_diverse(tokens)
    features, kept = encode_padded(text_engine.path.parent / "t5", "a red apple")
    assert tokens == oracle.follow_text(features, kept, guidance, tokens)
