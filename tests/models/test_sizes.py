"""Sizes by name, and the nearest one."""

from __future__ import annotations

import pytest

from zipar_vllm.core.grid import Grid
from zipar_vllm.models.sizes import AnySizes, FixedSizes, parse_size

SIZES = FixedSizes({"512x512": Grid(32, 32), "768x512": Grid(32, 48), "512x768": Grid(48, 32)})

ANY = AnySizes({"720x720": Grid(90, 90, True)}, factor=8, max_positions=9216, row_terminator=True)


def test_they_are_found_and_listed() -> None:
    assert SIZES.grid("768x512") == Grid(32, 48)
    assert SIZES.grid("512x513") is None
    assert SIZES.allowed == "auto or 512x512 or 768x512 or 512x768"


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


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ("720x720", Grid(90, 90, True)),
        ("960x544", Grid(68, 120, True)),
        ("8x8", Grid(1, 1, True)),
        ("760x768", Grid(96, 95, True)),  # 96 rows of 96 positions: the last that fits
        ("768x768", None),
        ("721x720", None),
        ("720x4", None),
        ("large", None),
    ],
)
def test_any_size_of_whole_tokens_that_fits(size: str, grid: Grid | None) -> None:
    assert ANY.grid(size) == grid


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [
        ("720x720", "720x720"),
        ("961x541", "960x544"),
        ("1024x1024", "760x760"),
        ("1920x1080", "1016x576"),
        ("1x1", "8x8"),
        ("99999x1", "73000x8"),
        ("large", None),
    ],
)
def test_the_nearest_of_any_size_keeps_the_shape(wanted: str, nearest: str | None) -> None:
    assert ANY.nearest(wanted) == nearest
    assert nearest is None or ANY.grid(nearest) is not None


def test_any_size_in_words() -> None:
    assert ANY.allowed == (
        "auto or width x height in steps of 8 pixels, up to 9216 tokens, such as 720x720"
    )
