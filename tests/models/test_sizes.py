"""Sizes by name, and the nearest one."""

from __future__ import annotations

import pytest

from zipar_vllm.core.grid import Grid
from zipar_vllm.models.sizes import FixedSizes, parse_size

SIZES = FixedSizes({"512x512": Grid(32, 32), "768x512": Grid(32, 48), "512x768": Grid(48, 32)})


def test_they_are_found_and_listed() -> None:
    assert SIZES.grid("768x512") == Grid(32, 48)
    assert SIZES.grid("512x513") is None
    assert SIZES.allowed == "auto or 512x512 or 768x512 or 512x768"
    assert SIZES.schema == {"enum": ["auto", "512x512", "768x512", "512x768"]}


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [
        ("1024x1024", "512x512"),
        ("1x1", "512x512"),
        ("1792x1024", "768x512"),
        ("1024x1536", "512x768"),
        ("512x768", "512x768"),
        ("99999x1", "768x512"),
    ],
)
def test_the_nearest_has_the_shape(wanted: str, nearest: str) -> None:
    assert SIZES.nearest(wanted) == nearest


@pytest.mark.parametrize("text", ["", "512", "0x512", "512 x 512", "-1x5", "100000x1", "٣x٣"])
def test_what_is_no_size_has_no_nearest(text: str) -> None:
    assert parse_size(text) is None
    assert SIZES.nearest(text) is None
