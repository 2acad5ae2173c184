"""A policy from another package, over a Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cases import assert_diverse
from tests.outside_policy import (  # noqa: F401  (a fixture)
    COLUMNS,
    ROWS,
    image_of,
    outside_package,
    tokens_by_one_pass,
)
from zipar_vllm.decoding.policy import make_policy, policy_names
from zipar_vllm.errors import InvalidOptionError

from .room import Room

pytestmark = pytest.mark.usefixtures("outside_package")


@pytest.mark.parametrize("window", [1, 3, 8])
def test_in_the_room(
    rooms: Callable[[bool], Room], model_path: Callable[[bool], Path], window: int
) -> None:
    room, image = rooms(True), image_of(window)
    got = room.generate(image)
    assert_diverse(got.tokens)
    assert got.tokens == tokens_by_one_pass(model_path(True), room.vocabulary, image, got.tokens)
    assert got.steps == COLUMNS + (ROWS - 1) * window


def test_it_is_listed_and_refuses_what_it_cannot_follow() -> None:
    assert policy_names() == ["fixed_window", "adaptive_window", "other_rows"]
    for image in (image_of(9), image_of(3, terminated=False)):
        with pytest.raises(InvalidOptionError, match="allowed is"):
            make_policy(image.grid, image.params)
