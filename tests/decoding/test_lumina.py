"""Lumina-mGPT over transformers' modules: raster order is the authors', windows the oracle's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cases import assert_diverse, expected
from tests.checkpoints.lumina import LuminaAsCausalModel, generate, make_lumina
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import PreparedImage, prepare_images

from .room import Room

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lumina")
    make_lumina(path)
    return path


@pytest.fixture(scope="module")
def room(path: Path) -> Room:
    return Room(path, model=LuminaAsCausalModel(path))


@pytest.fixture(scope="module")
def oracle(path: Path) -> Any:
    return LuminaAsCausalModel(path)


def image_of(path: Path, **options: Any) -> PreparedImage:
    return prepare_images(load_image_model(path), "a red apple", ImageOptions(**options), [7])[0]


@pytest.mark.parametrize("guidance", [1.0, 4.0], ids=["unguided", "guided"])
def test_raster_order_is_the_authors(path: Path, room: Room, oracle: Any, guidance: float) -> None:
    image = image_of(path, size="160x96", window=10, temperature=0.0, guidance_scale=guidance)
    tokens = room.generate(image).tokens
    assert_diverse(tokens)
    assert tokens == generate(oracle, image.prompts, rows=6, columns=10, guidance=guidance)


@pytest.mark.parametrize("guidance", [1.0, 4.0], ids=["unguided", "guided"])
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
