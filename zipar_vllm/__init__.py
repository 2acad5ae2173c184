"""Image generation with ZipAR inside vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .llm import GeneratedImage as GeneratedImage
    from .llm import ImageLLM as ImageLLM
    from .params import ImageOptions as ImageOptions
    from .params import ImageParams as ImageParams
    from .version import __version__ as __version__

_HOMES = {
    "GeneratedImage": "llm",
    "ImageLLM": "llm",
    "ImageOptions": "params",
    "ImageParams": "params",
    "__version__": "version",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import what is asked for: most of the package's users need neither vLLM nor torch."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
