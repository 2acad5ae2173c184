"""The server's own options, on the command line and in the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from server.options import PREFIX, ServerOptions, take_flags, usage_of


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    others = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
    with patch.dict(os.environ, others, clear=True):
        yield


def test_flags_are_taken_and_the_others_left() -> None:
    given = ["--nearest-size", "--port", "1", "--pixel-device", "cuda:1", "--image-timeout", "3"]
    assert take_flags(given) == ["--port", "1"]
    options = ServerOptions()
    assert (options.nearest_size, options.pixel_device, options.image_timeout) == (
        True,
        "cuda:1",
        3.0,
    )


def test_sizes_are_not_taken_for_others_unless_asked() -> None:
    assert take_flags([]) == []
    assert not ServerOptions().nearest_size


@pytest.mark.parametrize(
    ("flags", "name"),
    [(["--pixel-device", "gpu0"], "--pixel-device"), (["--image-timeout", "-1"], "--image-t")],
)
def test_a_bad_option_is_told_by_its_flag(flags: list[str], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}.*: got '.*', "):
        take_flags(flags)
    ServerOptions()  # nothing of it stands in the environment


def test_a_switch_takes_no_value() -> None:
    assert usage_of("nearest_size") == "--nearest-size"
    assert usage_of("storage_dir") == "--storage-dir STORAGE_DIR"
