"""Failures that cross from the engine to whoever asked for an image."""

from __future__ import annotations


class EngineUnavailableError(RuntimeError):
    """The engine gave an image up.

    Attributes:
        dead: The engine died; if not, it is draining and another replica may serve.
    """

    def __init__(self, message: str, *, dead: bool = False) -> None:
        super().__init__(message)
        self.dead = dead


class ImageTooLargeError(ValueError):
    """The engine's memory can never hold this image."""
