"""Emu3 over transformers' modules: raster order is its ``generate``, windows the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cases import assert_diverse, expected
from tests.checkpoints.emu3 import Emu3AsCausalModel, generate, load_oracle, make_emu3
from zipar_vllm.models.base import ImageModel
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import PreparedImage, prepare_images

from .room import Room

pytestmark = pytest.mark.slow

SIZES = {"64x64": (8, 8), "96x48": (6, 12)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("emu3")
    make_emu3(path)
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> ImageModel:
    return load_image_model(path)


@pytest.fixture(scope="module")
def room(path: Path) -> Room:
    return Room(path, model=Emu3AsCausalModel(path))


@pytest.fixture(scope="module")
def oracle(path: Path) -> Any:
    return load_oracle(path)


def image_of(model: ImageModel, **options: Any) -> PreparedImage:
    return prepare_images(model, "a red apple.", ImageOptions(**options), [7])[0]


@pytest.mark.parametrize("guidance", [1.0, 3.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("size", SIZES)
def test_raster_order_is_transformers_generate(
    model: ImageModel, room: Room, oracle: Any, size: str, guidance: float
) -> None:
    rows, columns = SIZES[size]
    image = image_of(
        model, size=size, window=columns, temperature=0.0, top_k=0, guidance_scale=guidance
    )
    tokens = room.generate(image).tokens
    assert_diverse(tokens)
    assert tokens == generate(oracle, image.prompts, rows, columns, guidance)


@pytest.mark.parametrize("guidance", [1.0, 3.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("window", [1, 4, 8])
def test_windows(
    path: Path, model: ImageModel, room: Room, oracle: Any, window: int, guidance: float
) -> None:
    image = image_of(model, window=window, guidance_scale=guidance)
    tokens, passes = expected(path, room.vocabulary, image, model=oracle)
    got = room.generate(image)
    assert_diverse(tokens)
    assert (got.tokens, got.steps) == (tokens, passes)
