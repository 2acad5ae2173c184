"""Failures that whoever asked for an image, or for a model, is told of."""

from __future__ import annotations

MAX_SHOWN = 80
"""Characters of a bad value that an error message repeats."""


class InvalidOptionError(ValueError):
    """A request's option is missing, unknown, of the wrong type or out of range.

    Args:
        field: Name of the option.
        problem: What came and what is allowed, in words.
        code: The kind of mistake, for programs: ``invalid_value``, ``missing`` or ``unknown``.
    """

    def __init__(self, field: str, problem: str, code: str = "invalid_value") -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem
        self.code = code

    @classmethod
    def of(cls, field: str, got: object, allowed: str) -> InvalidOptionError:
        """The usual mistake: a value that is not among those allowed."""
        return cls(field, f"got {shorten(got)}, allowed is {allowed}")


class UnusableModelError(ValueError):
    """A checkpoint is no image model, or is not complete: names it and says what is wrong.

    Args:
        message: The checkpoint and what is wrong with it.
        remedy: What to do about it, where that is known.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


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


def shorten(value: object) -> str:
    """A bad value as an error message repeats it: short, whatever came."""
    if isinstance(value, str) and len(value) > MAX_SHOWN:
        return f"a text of {len(value)} characters"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
