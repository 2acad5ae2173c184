"""Which sizes of picture a model draws, and on which grids."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from zipar_vllm.core.grid import Grid


class Sizes(Protocol):
    """The sizes of a model, as texts ``WxH``: width and height in pixels."""

    @property
    def listed(self) -> Mapping[str, Grid]:
        """Sizes worth naming and their grids, the default first; there may be others."""
        ...

    @property
    def allowed(self) -> str:
        """All sizes, in words."""
        ...

    def grid(self, size: str) -> Grid | None:
        """The grid of a size; None if the model cannot draw it."""
        ...

    def nearest(self, size: str) -> str | None:
        """The size of its own that is most like another; None if the text is no size."""
        ...


@dataclass(frozen=True, slots=True)
class FixedSizes:
    """A few sizes.

    Attributes:
        listed: Grid by size, the default first.
    """

    listed: Mapping[str, Grid]

    @property
    def allowed(self) -> str:
        return " or ".join(["auto", *self.listed])

    def grid(self, size: str) -> Grid | None:
        return self.listed.get(size)

    def nearest(self, size: str) -> str | None:
        wanted = parse_size(size)
        if wanted is None:
            return None
        return min(self.listed, key=lambda own: _distance(wanted, parse_size(own) or wanted))


@dataclass(frozen=True, slots=True)
class AnySizes:
    """Any size in steps of whole tokens, as far as the model's positions reach.

    Attributes:
        listed: Sizes worth naming and their grids, the default first.
        factor: Pixels per token, each way.
        max_positions: Most positions of a picture, terminators included.
        row_terminator: Whether a terminator ends every row.
    """

    listed: Mapping[str, Grid]
    factor: int
    max_positions: int
    row_terminator: bool

    @property
    def allowed(self) -> str:
        return (
            f"auto or width x height in steps of {self.factor} pixels, "
            f"up to {self.max_positions} tokens, such as {' or '.join(self.listed)}"
        )

    def grid(self, size: str) -> Grid | None:
        sides = parse_size(size)
        if sides is None or any(side % self.factor for side in sides):
            return None
        width, height = sides
        grid = Grid(height // self.factor, width // self.factor, self.row_terminator)
        return grid if grid.num_positions <= self.max_positions else None

    def nearest(self, size: str) -> str | None:
        sides = parse_size(size)
        if sides is None:
            return None
        # Of the same shape, smaller by a percent until it fits.
        for percent in range(100, 0, -1):
            width, height = (
                max(round(side * percent / 100 / self.factor), 1) * self.factor for side in sides
            )
            nearest = f"{width}x{height}"
            if self.grid(nearest) is not None:
                return nearest
        return next(iter(self.listed))


def parse_size(size: str) -> tuple[int, int] | None:
    """Width and height of ``WxH``, 1 to 99,999 each; None if the text is no such size."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size, re.ASCII)
    return (int(match[1]), int(match[2])) if match else None


def _distance(one: tuple[int, int], other: tuple[int, int]) -> tuple[float, float]:
    """How unlike two sizes are: in shape, and then in area."""
    (width, height), (other_width, other_height) = one, other
    shape = abs(math.log(width * other_height / (height * other_width)))
    return shape, abs(math.log(width * height / (other_width * other_height)))
