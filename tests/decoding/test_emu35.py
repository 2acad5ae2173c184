"""Emu3.5 over transformers' modules: raster order is the authors' loop, windows the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cases import assert_diverse, expected
from tests.checkpoints.emu35 import (
    END_OF_IMAGE,
    END_OF_ROW,
    Emu35AsCausalModel,
    generate,
    load_oracle,
    make_emu35,
)
from zipar_vllm.models.base import ImageModel
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import PreparedImage, prepare_images

from .room import Room

pytestmark = pytest.mark.slow

SIZES = {"128x128": (8, 8), "192x96": (6, 12)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("emu35") / "model"
    make_emu35(path)
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> ImageModel:
    return load_image_model(path)


@pytest.fixture(scope="module")
def room(path: Path) -> Room:
    return Room(path, model=Emu35AsCausalModel(path))


@pytest.fixture(scope="module")
def oracle(path: Path) -> Any:
    return load_oracle(path)


def image_of(model: ImageModel, **options: Any) -> PreparedImage:
    return prepare_images(model, "a red apple", ImageOptions(**options), [7])[0]


@pytest.mark.parametrize("guidance", [1.0, 5.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("size", SIZES)
def test_raster_order_is_the_authors_loop(
    model: ImageModel, room: Room, oracle: Any, size: str, guidance: float
) -> None:
    rows, columns = SIZES[size]
    image = image_of(
        model, size=size, window=columns, temperature=0.0, top_k=0, guidance_scale=guidance
    )
    tokens = room.generate(image).tokens
    assert_diverse(tokens)
    picture = generate(oracle, image.prompts, rows, columns, guidance)
    assert picture.pop() == END_OF_IMAGE  # where our last row ends as all do, unseen
    assert tokens == [*picture, END_OF_ROW]


@pytest.mark.parametrize("guidance", [1.0, 5.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("window", [1, 4, 8])
def test_windows(
    path: Path, model: ImageModel, room: Room, oracle: Any, window: int, guidance: float
) -> None:
    image = image_of(model, window=window, guidance_scale=guidance)
    tokens, passes = expected(path, room.vocabulary, image, model=oracle)
    got = room.generate(image)
    assert_diverse(tokens)
    assert (got.tokens, got.steps) == (tokens, passes)
