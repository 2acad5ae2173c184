"""Emu3's VQ decoder for pictures: transformers' modules, for the first frame alone.

Source: transformers, ``models/emu3/modeling_emu3.py``. The decoder makes four frames of every token
grid, as for videos; of a picture only the first is kept. Frames are mixed before the decoder's
spatial part and not within it, so that the first one's is the same without the other three.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from .tiles import Tail


class FirstFrameDecoder:
    """From codes to pixels, of any height and width.

    Args:
        model: transformers' ``Emu3VQVAE``.

    Attributes:
        factor: Pixels per token, each way.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.factor: int = model.spatial_scale_factor

    def __call__(self, codes: torch.Tensor) -> torch.Tensor:
        """Pixels float32 ``[B, 3, H, W]`` in about [-1, 1] of int64 ``[B, rows, columns]``."""
        rows, columns = codes.shape[-2:]
        return self.tail(*self._head(codes), rows=rows, columns=columns)

    @property
    def tail(self) -> Tail:
        """What comes behind the lowest resolution; it may be run in tiles."""
        decoder = self._model.decoder
        modules = [*decoder.up_block.up[:-1], decoder.norm_out]
        return Tail.of(self._tail, modules, decoder.up_block.num_res_blocks + 1, self.factor)

    def _head(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The temporal part, the middle and the lowest level, which attend.

        Returns:
            The states, and what the norms behind them are conditioned on.
        """
        decoder = self._model.decoder
        quantised = self._model.quantize.embedding(codes).permute(0, 3, 1, 2)[:, :, None]
        both = torch.cat([self._model.post_quant_conv(quantised), quantised])
        for layer in decoder.time_res_stack:
            both = layer(both)
        for layer in decoder.time_conv:
            both = functional.silu(layer(both))
        states, condition = both[:, :, 0].chunk(2)
        states = decoder.middle_block(decoder.conv_in(states), condition)
        return self._level(-1, states, condition), condition

    def _tail(self, states: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        decoder = self._model.decoder
        for number in reversed(range(len(decoder.up_block.up) - 1)):
            states = self._level(number, states, condition)
        pixels: torch.Tensor = decoder.conv_out(
            functional.silu(decoder.norm_out(states, condition))
        )
        return pixels

    def _level(self, number: int, states: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        level = self._model.decoder.up_block.up[number]
        for place, block in enumerate(level.block):
            states = block(states, condition)
            if level.attn:
                normed = level.attn_norms[place](states, condition)
                mixed = level.attn[place](normed.flatten(2).mT)[0]
                states = states + mixed.mT.view_as(states)
        return level.upsample(states) if hasattr(level, "upsample") else states
