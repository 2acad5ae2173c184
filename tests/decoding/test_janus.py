"""Janus-Pro over transformers' modules: raster order is its ``generate``, windows the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cases import assert_diverse, expected
from tests.checkpoints.janus import VOCABULARY, JanusAsCausalModel, load_oracle, make_janus
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import PreparedImage, prepare_images

from .room import Room

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("janus")
    make_janus(path)
    return path


@pytest.fixture(scope="module")
def room(path: Path) -> Room:
    return Room(path, model=JanusAsCausalModel(path))


@pytest.fixture(scope="module")
def oracle(path: Path) -> Any:
    return JanusAsCausalModel(path)


def image_of(path: Path, **options: Any) -> PreparedImage:
    return prepare_images(load_image_model(path), "a red apple", ImageOptions(**options), [7])[0]


@pytest.mark.parametrize("guidance", [1.0, 5.0], ids=["unguided", "guided"])
def test_raster_order_is_transformers_generate(path: Path, room: Room, guidance: float) -> None:
    image = image_of(path, window=8, temperature=0.0, guidance_scale=guidance)
    prompt = torch.tensor([image.prompts.conditional])
    codes = load_oracle(path).generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        generation_mode="image",
        do_sample=False,
        guidance_scale=max(guidance, 1 + 1e-6),  # at 1 it fails: it draws for two lanes anyhow
    )
    tokens = room.generate(image).tokens
    assert_diverse(tokens)
    assert tokens == (codes[0] + VOCABULARY).tolist()


@pytest.mark.parametrize("guidance", [1.0, 5.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("window", [1, 4, 8])
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_windows(
    path: Path, room: Room, oracle: Any, window: int, guidance: float, temperature: float
) -> None:
    image = image_of(path, window=window, guidance_scale=guidance, temperature=temperature)
    tokens, passes = expected(path, room.vocabulary, image, model=oracle)
    got = room.generate(image)
    assert_diverse(tokens)
    assert (got.tokens, got.steps) == (tokens, passes)


def test_the_published_size_takes_116_steps(tmp_path: Path) -> None:
    make_janus(tmp_path, side=24)
    room = Room(tmp_path, model=JanusAsCausalModel(tmp_path))
    got = room.generate(image_of(tmp_path, window=4))
    assert (len(got.tokens), got.steps) == (576, 116)
