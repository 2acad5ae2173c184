"""Render pictures in batches, and in tiles where the whole would not fit in the device's memory.

A VQ decoder attends at its lowest resolution alone, which takes little memory and is computed
whole (its *head*). What comes behind it (its *tail*) has convolutions, which a tile with a margin
as wide as their reach computes exactly, and group norms, whose statistics are the whole picture's.
These are gathered one norm after the other, each in a pass over all tiles through the norms before
it: half as many passes as there are norms, so many times as long, and the same pixels but for
rounding. Nothing is blended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import nn

from .base import to_bytes

TILE = 32
"""Tokens of a tile each way, its margin left out."""

WHOLE_PIXELS = 1 << 20
"""A picture of more pixels is rendered in tiles from the start.

So many have the largest published ones, of 1024 x 1024. Whole, at the published widths, they take
2 GiB of activations where the decoder is a VQGAN, and would take 10 GiB where it is Emu3's.
"""
BATCH_PIXELS = WHOLE_PIXELS // 2
"""Pixels of pictures that are rendered at once: one of Emu3's, three of 384 x 384.

More at once take more memory, and are no faster on a CPU.
"""
MAX_BATCH = 16
"""Pictures that a model is given to render at a time."""


class PixelDecoder(Protocol):
    """From codes to pixels.

    Attributes:
        factor: Pixels per token, each way.
    """

    factor: int

    def __call__(self, codes: torch.Tensor) -> torch.Tensor:
        """Pixels ``[B, 3, H, W]`` in about [-1, 1] of int64 ``[B, rows, columns]``."""
        ...


def render(decoder: PixelDecoder, codes: torch.Tensor) -> torch.Tensor:
    """Render pictures, as many at once as have :data:`BATCH_PIXELS`, one at least.

    Args:
        decoder: Makes pixels of codes.
        codes: int64 ``[B, rows, columns]``, on its device.

    Returns:
        uint8 ``[B, H, W, 3]``.
    """
    pixels = codes[0].numel() * decoder.factor**2
    size = batch_size(pixels)
    parts = (codes[first : first + size] for first in range(0, len(codes), size))
    return torch.cat([to_bytes(decoder(part)) for part in parts])


def batch_size(pixels: int) -> int:
    """Pictures of so many pixels each that are rendered at once."""
    return min(max(BATCH_PIXELS // pixels, 1), MAX_BATCH)


@dataclass(frozen=True, slots=True)
class Tail:
    """The part of a decoder that can be run in tiles.

    Attributes:
        run: From the head's results, each float ``[B, C, s * rows, s * columns]`` with a scale s
            of its own, to pixels ``[B, 3, H, W]``; without attention.
        norms: Its group norms.
        margin: Tokens that a pixel depends on, each way.
        factor: Pixels per token, each way.
    """

    run: Callable[..., torch.Tensor]
    norms: Sequence[nn.GroupNorm]
    margin: int
    factor: int

    @classmethod
    def of(
        cls,
        run: Callable[..., torch.Tensor],
        modules: Sequence[nn.Module],
        blocks: int,
        factor: int,
    ) -> Tail:
        """That of a decoder that doubles its resolution from level to level.

        Args:
            run: As above.
            modules: Where its norms are.
            blocks: Residual blocks per level, of two 3 x 3 convolutions each; one more comes behind
                the last of a level.
            factor: As above.
        """
        norms = [
            found
            for module in modules
            for found in module.modules()
            if isinstance(found, nn.GroupNorm)
        ]
        # A convolution reaches half a token on the first level, a quarter on the second, ...
        return cls(run, norms, 2 * blocks + 2, factor)

    def __call__(self, *inputs: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Pixels, computed whole up to a size (:data:`WHOLE_PIXELS`), if memory allows."""
        if rows * columns * self.factor**2 <= WHOLE_PIXELS:
            try:
                return self.run(*inputs)
            except torch.OutOfMemoryError:
                pass  # its traceback, which holds on to memory, ends here
        if len(inputs[0]) > 1:
            each = ([batch[i : i + 1] for batch in inputs] for i in range(len(inputs[0])))
            return torch.cat([self(*one, rows=rows, columns=columns) for one in each])
        return self.in_tiles(*inputs, rows=rows, columns=columns)

    def in_tiles(
        self, *inputs: torch.Tensor, rows: int, columns: int, size: int = TILE
    ) -> torch.Tensor:
        """Pixels, a tile of ``size`` x ``size`` tokens at a time."""
        tiles = [
            _Tile(*_spans(top, rows, size, self.margin), *_spans(left, columns, size, self.margin))
            for top in range(0, rows, size)
            for left in range(0, columns, size)
        ]
        statistics = _Statistics()
        with statistics.shared_by(self.norms):
            while True:
                done = [self._run_tile(tile, inputs, (rows, columns), statistics) for tile in tiles]
                if not statistics.gathered:
                    break
                statistics.finish()
        pixels = [one for one in done if one is not None]
        across = -(-columns // size)
        bands = [torch.cat(pixels[i : i + across], -1) for i in range(0, len(pixels), across)]
        return torch.cat(bands, -2)

    def _run_tile(
        self,
        tile: _Tile,
        inputs: Sequence[torch.Tensor],
        shape: tuple[int, int],
        statistics: _Statistics,
    ) -> torch.Tensor | None:
        """The tile's own pixels; None if a norm's statistics are not known yet."""
        statistics.begin(tile)
        try:
            return tile.own(self.run(*(tile.cut(whole, shape) for whole in inputs)))
        except _NotKnownYet:
            return None


@dataclass(frozen=True, slots=True)
class _Tile:
    """A part of the picture and, within it, what is its own, in tokens."""

    rows: range
    own_rows: range
    columns: range
    own_columns: range

    def cut(self, whole: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """This part of ``[B, C, s * rows, s * columns]``, the margin included."""
        return _part(whole, whole.shape[-2] // shape[0], self.rows, self.columns)

    def own(self, tile: torch.Tensor) -> torch.Tensor:
        """What is its own of a tile."""
        rows, columns = (
            range(own.start - whole.start, own.stop - whole.start)
            for own, whole in ((self.own_rows, self.rows), (self.own_columns, self.columns))
        )
        return _part(tile, tile.shape[-2] // len(self.rows), rows, columns)


@dataclass(slots=True)
class _Statistics:
    """Means and variances of norms, in the order in which they are met.

    Attributes:
        known: Mean and variance of each, ``[B, groups, 1, 1, 1]``.
        gathered: Of the next norm, a tile's numbers each: how many, mean and variance.
    """

    known: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    gathered: list[tuple[int, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    _tile: _Tile | None = None
    _met: int = 0

    def begin(self, tile: _Tile) -> None:
        self._tile, self._met = tile, 0

    @contextmanager
    def shared_by(self, norms: Sequence[nn.GroupNorm]) -> Iterator[None]:
        """Have norms use these statistics, or be gathered from."""
        for norm in norms:
            vars(norm)["forward"] = partial(self._norm, norm)
        try:
            yield
        finally:
            for norm in norms:
                del vars(norm)["forward"]  # the class's own again

    def finish(self) -> None:
        """Put what the tiles have gathered together (Chan's formula)."""
        counts = torch.tensor([count for count, _, _ in self.gathered], dtype=torch.float64)
        means = torch.stack([mean.double() for _, mean, _ in self.gathered])
        variances = torch.stack([variance.double() for _, _, variance in self.gathered])
        shares = (counts / counts.sum()).to(means.device).view(-1, *[1] * (means.dim() - 1))
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)
        dtype = self.gathered[0][1].dtype
        self.known.append((mean.to(dtype), variance.to(dtype)))
        self.gathered.clear()

    def _norm(self, norm: nn.GroupNorm, states: torch.Tensor) -> torch.Tensor:
        place = self._met
        self._met += 1
        if place == len(self.known):
            assert self._tile is not None
            own = _grouped(norm, self._tile.own(states))
            variance, mean = torch.var_mean(own, (2, 3, 4), correction=0, keepdim=True)
            self.gathered.append((own[0, 0].numel(), mean, variance))
            raise _NotKnownYet
        mean, variance = self.known[place]
        normed = (_grouped(norm, states) - mean) * (variance + norm.eps).rsqrt()
        return normed.flatten(1, 2) * norm.weight[:, None, None] + norm.bias[:, None, None]


class _NotKnownYet(Exception):
    """A norm was met whose statistics are not known."""


def _spans(start: int, length: int, size: int, margin: int) -> tuple[range, range]:
    """A tile's part of a side, with its margin and without."""
    stop = min(start + size, length)
    return range(max(start - margin, 0), min(stop + margin, length)), range(start, stop)


def _grouped(norm: nn.GroupNorm, states: torch.Tensor) -> torch.Tensor:
    """``[B, groups, C / groups, H, W]``, or a part of it."""
    batch, channels, height, width = states.shape
    return states.reshape(batch, norm.num_groups, channels // norm.num_groups, height, width)


def _part(whole: torch.Tensor, scale: int, rows: range, columns: range) -> torch.Tensor:
    return whole[
        ...,
        scale * rows.start : scale * rows.stop,
        scale * columns.start : scale * columns.stop,
    ]
