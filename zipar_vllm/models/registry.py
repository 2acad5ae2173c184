"""Find the family of a model folder."""

from __future__ import annotations

from pathlib import Path

from . import demo
from .base import ImageModel, ImageModelSpec


def load_spec(path: str | Path) -> ImageModelSpec:
    """The static facts of the image model in folder ``path``; reads no weights.

    Raises:
        ValueError: the folder holds no image model of a known family.
    """
    return demo.make_spec(demo.read(Path(path)))


def load_image_model(path: str | Path) -> ImageModel:
    """Load the text and pixel side of the image model in folder ``path``.

    Raises:
        ValueError: the folder holds no image model of a known family.
    """
    return demo.DemoModel(Path(path))
