"""Janus-Pro in the real engine: what vLLM's layers and our loading of its weights add."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cases import assert_diverse, expected
from tests.checkpoints.janus import VOCABULARY, JanusAsCausalModel, load_oracle
from zipar_vllm.core.grid import Grid
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import PreparedImage, prepare_images

from .conftest import Engine, assert_scores_are_raster_orders

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session")
def janus_engine(family_engines: Callable[[str], Engine]) -> Engine:
    return family_engines("janus")


def image_of(path: Path, prompt: str = "a red apple", **options: Any) -> PreparedImage:
    return prepare_images(load_image_model(path), prompt, ImageOptions(**options), [7])[0]


def test_raster_order_is_transformers_generate(janus_engine: Engine) -> None:
    engine = janus_engine
    image = image_of(engine.path, window=8, temperature=0.0)
    prompt = torch.tensor([image.prompts.conditional])
    codes = load_oracle(engine.path).generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        generation_mode="image",
        do_sample=False,
        guidance_scale=5.0,
    )
    tokens = engine.generate(image).tokens
    assert_diverse(tokens)
    assert tokens == (codes[0] + VOCABULARY).tolist()


def test_windows_in_a_batch(janus_engine: Engine) -> None:
    """Guided and not, greedy and sampled, with prompts of unlike lengths."""
    engine = janus_engine
    model = JanusAsCausalModel(engine.path)
    images = {
        f"{window} {guidance}": image_of(
            engine.path,
            "a red apple" * window,
            window=window,
            guidance_scale=guidance,
            temperature=float(guidance != 1),
            negative_prompt="blurred" if window == 4 else None,
        )
        for window in (1, 4, 8)
        for guidance in (1.0, 5.0)
    }
    for name, image in images.items():
        engine.add(name, image, logprobs=True)
    engine.run()
    for name, image in images.items():
        tokens, passes = expected(engine.path, engine.vocabulary, image, model=model)
        assert_diverse(tokens)
        assert engine.outputs[name].tokens == tokens, name
        assert engine.outputs[name].steps == passes
        assert len(engine.logprobs[name]) == 64


def test_the_published_size_takes_116_steps(janus_engine: Engine) -> None:
    image = image_of(janus_engine.path, window=4)
    got = janus_engine.generate(replace(image, grid=Grid(24, 24)))
    assert (len(got.tokens), got.steps) == (576, 116)


def test_a_finished_picture_is_scored(janus_engine: Engine) -> None:
    engine = janus_engine
    image = image_of(engine.path, window=8, guidance_scale=1.0, temperature=1.0)
    assert_scores_are_raster_orders(engine, image)
