"""Find the family of a model folder."""

from __future__ import annotations

import json
from pathlib import Path

from . import demo
from .base import ImageModel, ImageModelSpec


def load_spec(path: str | Path) -> ImageModelSpec:
    """The static facts of the image model in folder ``path``; reads no weights.

    Raises:
        ValueError: the folder holds no image model of a known family.
    """
    _check_family(Path(path))
    return demo.load_spec(Path(path))


def load_image_model(path: str | Path) -> ImageModel:
    """Load the text and pixel side of the image model in folder ``path``.

    Raises:
        ValueError: the folder holds no image model of a known family.
    """
    _check_family(Path(path))
    return demo.DemoModel(Path(path))


def _check_family(path: Path) -> None:
    file = path / demo.SPEC_FILE
    if not file.is_file():
        raise ValueError(f"{path} is no image model: it has no {demo.SPEC_FILE}")
    family = json.loads(file.read_text()).get("family")
    if family != demo.FAMILY:
        raise ValueError(f"{file}: family {family!r} is unknown, known is {demo.FAMILY!r}")
