"""Which family a checkpoint is of, told by its architecture, and its parts."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import torch

from zipar_vllm.errors import UnusableModelError

from .base import ImageModel, ImageModelFamily, ImageModelSpec
from .checkpoint import Checkpoint

FAMILIES = {
    "LlamaForCausalLM": "zipar_vllm.models.demo:DemoModel",
    "Emu3ForCausalLM": "zipar_vllm.models.emu35:Emu35Model",
    "Emu3ForConditionalGeneration": "zipar_vllm.models.emu3:Emu3Model",
    "JanusForConditionalGeneration": "zipar_vllm.models.janus:JanusModel",
    "LlamaGenForImageGeneration": "zipar_vllm.models.llamagen:LlamaGenModel",
    "LlamaGenForTextToImage": "zipar_vllm.models.llamagen_text:LlamaGenTextModel",
    "ChameleonForConditionalGeneration": "zipar_vllm.models.lumina:LuminaModel",
    "ChameleonXLLMXForConditionalGeneration": "zipar_vllm.models.lumina:LuminaModel",
}
"""A family's class by the architecture that ``config.json`` names; imported when one is met."""
CONVERTERS = {
    "Emu3ForCausalLM": "zipar_vllm.models.emu3_original:convert",
    "MultiModalityCausalLM": "zipar_vllm.models.janus_original:convert",
}
"""What makes other layouts ones of these families, by the architecture they name."""
ENTRY_POINTS = "zipar_vllm.models"
"""Group of entry points by which other packages add families; each is named as in the table."""


def load_spec(model: str | Path, revision: str | None = None) -> ImageModelSpec:
    """The static facts of an image model; reads no weights.

    Args:
        model: A folder, or a hub id.
        revision: Of the hub id.

    Raises:
        UnusableModelError: it is no image model of a known family, or lacks a file.
    """
    checkpoint = Checkpoint(model, revision)
    return _family(checkpoint).read_spec(checkpoint)


def load_image_model(
    model: str | Path, revision: str | None = None, device: str | torch.device = "cpu"
) -> ImageModel:
    """Load the text and pixel side of an image model.

    Args:
        model: A folder, or a hub id.
        revision: Of the hub id.
        device: Where it renders pixels.

    Raises:
        UnusableModelError: it is no image model of a known family, or something is missing or
            does not fit, the transformer's tensors included.
    """
    checkpoint = Checkpoint(model, revision)
    return _family(checkpoint)(checkpoint, torch.device(device))


def default_device() -> str:
    """Where pixels are rendered if nobody says: on the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_image_model(model: str | Path, revision: str | None = None) -> None:
    """See whether :func:`load_image_model` can load a model; reads no weights but their headers.

    Raises:
        UnusableModelError: says what is wrong first.
    """
    for problem in find_problems(model, revision):
        raise problem


def find_problems(model: str | Path, revision: str | None = None) -> list[UnusableModelError]:
    """All that keeps :func:`load_image_model` from loading a model; reads no weights.

    What cannot be looked at before something else is there is left out.
    """
    checkpoint = Checkpoint(model, revision)
    checkpoint.findings = []
    with checkpoint.finding():
        _family(checkpoint)(checkpoint, torch.device("meta"))
    return checkpoint.findings


def convert(model: str | Path, target: Path, revision: str | None = None) -> None:
    """Write a checkpoint in its authors' own layout as one of a family that can be served.

    Args:
        model: A folder, or a hub id.
        target: A folder that does not exist yet.
        revision: Of the hub id.

    Raises:
        UnusableModelError: there is no converter for its architecture, or a file is missing.
        FileExistsError: there is such a folder.
    """
    checkpoint = Checkpoint(model, revision)
    converter = CONVERTERS.get(checkpoint.architecture)
    if converter is None:
        known = ", ".join(CONVERTERS)
        raise checkpoint.error(
            f"its architecture {checkpoint.architecture} has no converter; known are {known}",
            "serve it as it is, if zipar check finds nothing",
        )
    target.mkdir(parents=True)
    _load(converter)(checkpoint, target)


def architectures() -> list[str]:
    """All architectures that are known: the project's own first, then those of other packages."""
    return [*FAMILIES, *sorted(found.name for found in entry_points(group=ENTRY_POINTS))]


def _family(checkpoint: Checkpoint) -> ImageModelFamily:
    name = checkpoint.architecture
    family = _find(name)
    if family is None:
        known = ", ".join(architectures())
        hint, remedy = f", known are {known}", "take another checkpoint, or add its family"
        if name in CONVERTERS:
            hint, remedy = ": convert it first, by zipar convert", "zipar convert"
        raise checkpoint.error(f"its architecture {name} cannot be served{hint}", remedy)
    return family


@cache
def _find(architecture: str) -> ImageModelFamily | None:
    own = FAMILIES.get(architecture)
    if own is not None:
        return cast(ImageModelFamily, _load(own))
    for found in entry_points(group=ENTRY_POINTS):
        if found.name == architecture:
            return cast(ImageModelFamily, found.load())
    return None


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
