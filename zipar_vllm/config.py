"""What describes one image to the engine: its grid, window, guidance and sampling.

These options travel in ``SamplingParams.extra_args["zipar"]``, so that any vLLM client can ask
for an image; :meth:`ImageParams.from_extra_args` is the one place that checks them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from zipar_vllm.core.grid import Grid

EXTRA_ARGS_KEY = "zipar"
MAX_SEED = 2**63 - 1


class ImageParamsError(ValueError):
    """An image option is missing, of the wrong type or out of range.

    Attributes:
        field: Name of the option.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


@dataclass(frozen=True, slots=True)
class ImageParams:
    """Options of one image.

    Attributes:
        rows, columns: The grid of image tokens, 1 or more each.
        window: ZipAR window, 1 to ``columns``; ``columns`` is plain raster decoding.
        adaptive: Whether ``window`` is only the least that a row waits for; it then starts once
            its first token no longer depends on waiting longer.
        seed: Keys the sampling noise, 0 to 2**63 - 1.
        unconditional_length: How many of the request's last prompt tokens are the prompt of the
            unconditional lane; 0 turns guidance off.
        guidance_scale: Classifier-free guidance g in ``u + g * (c - u)``.
        temperature: 0 is greedy.
        top_k: 0 keeps every image token.
        top_p: In (0, 1].
    """

    rows: int
    columns: int
    window: int
    adaptive: bool = False
    seed: int = 0
    unconditional_length: int = 0
    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        _check_int("rows", self.rows, 1)
        _check_int("columns", self.columns, 1)
        _check_int("window", self.window, 1, self.columns)
        if not isinstance(self.adaptive, bool):
            raise ImageParamsError("adaptive", f"got {self.adaptive!r}, allowed is true or false")
        _check_int("seed", self.seed, 0, MAX_SEED)
        _check_int("unconditional_length", self.unconditional_length, 0)
        _check_number("guidance_scale", self.guidance_scale, 0.0, 100.0)
        _check_number("temperature", self.temperature, 0.0, 10.0)
        _check_int("top_k", self.top_k, 0)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise ImageParamsError("top_p", "got 0, allowed is more than 0 up to 1")

    @property
    def num_lanes(self) -> int:
        """2 with classifier-free guidance, else 1."""
        return 2 if self.unconditional_length else 1

    def grid(self, row_terminator: bool) -> Grid:
        """The grid; whether rows are terminated is the model's to say, not the request's."""
        return Grid(self.rows, self.columns, row_terminator)

    def to_extra_args(self) -> dict[str, Any]:
        """The value to give as ``SamplingParams.extra_args``."""
        return {EXTRA_ARGS_KEY: asdict(self)}

    @classmethod
    def from_extra_args(cls, extra_args: Mapping[str, Any] | None) -> ImageParams:
        """Read and check what :meth:`to_extra_args` wrote.

        Raises:
            ImageParamsError: an option is missing, unknown or out of range.
        """
        options = (extra_args or {}).get(EXTRA_ARGS_KEY)
        if not isinstance(options, Mapping):
            raise ImageParamsError(
                f"extra_args.{EXTRA_ARGS_KEY}", f"got {options!r}, needed is a table of options"
            )
        known = {field.name for field in fields(cls)}
        for name in options:
            if name not in known:
                raise ImageParamsError(str(name), f"unknown, allowed are {sorted(known)}")
        for name in ("rows", "columns", "window"):
            if name not in options:
                raise ImageParamsError(name, "missing")
        return cls(**options)


def _check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    limit = f"{low} or more" if high is None else f"{low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise ImageParamsError(name, f"got {value!r}, allowed is a whole number, {limit}")
    if value < low or (high is not None and value > high):
        raise ImageParamsError(name, f"got {value}, allowed is {limit}")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ImageParamsError(name, f"got {value!r}, allowed is a number, {low:g} to {high:g}")
    if not low <= value <= high:
        raise ImageParamsError(name, f"got {value:g}, allowed is {low:g} to {high:g}")
