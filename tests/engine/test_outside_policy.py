"""A policy from another package, in the real engine, beside the project's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cases import make_image
from tests.outside_policy import (  # noqa: F401  (a fixture)
    COLUMNS,
    ROWS,
    image_of,
    outside_package,
    tokens_by_one_pass,
)

from .conftest import Engine

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("outside_package")]


def test_in_the_engine(engines: Callable[[bool], Engine]) -> None:
    """Beside images under the project's own policies; rows are released from the top."""
    engine, image = engines(True), image_of(window=3)
    engine.outputs.clear()
    others = [make_image(True, window=2), make_image(True, window=2, policy="adaptive_window")]
    for index, other in enumerate(others):
        engine.add(str(index), other)
    engine.add("outside", image)
    engine.run()
    got = engine.outputs["outside"]
    assert got.tokens == tokens_by_one_pass(engine.path, engine.vocabulary, image, got.tokens)
    assert got.steps == COLUMNS + (ROWS - 1) * 3
    stride = COLUMNS + 1
    # Row 1 is the first of those between, and completes rows 0 to 2.
    assert engine.released["outside"][:2] == [stride, 3 * stride]
    for index, other in enumerate(others):
        assert engine.generate(other).tokens == engine.outputs[str(index)].tokens
