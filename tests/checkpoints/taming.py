"""The decoder of taming-transformers' VQGAN, of transformers' blocks of Chameleon's encoder."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonVQVAEEncoderAttnBlock,
    ChameleonVQVAEEncoderResnetBlock,
)


class TamingDecoder(nn.Module):
    """Codebook and decoder, with the tensors' names of taming's checkpoints.

    Two residual blocks per level, each followed by attention on the lowest one if it ``attends``.
    """

    def __init__(
        self,
        codes: int,
        embedding: int,
        latent: int,
        channels: int,
        multipliers: Sequence[int],
        attends: bool = False,
    ) -> None:
        super().__init__()
        config = SimpleNamespace(dropout=0.0)
        lowest = channels * multipliers[-1]

        def block(narrow: int, wide: int) -> nn.Module:
            return ChameleonVQVAEEncoderResnetBlock(config, narrow, wide)

        self.quantize: Any = nn.ModuleDict({"embedding": nn.Embedding(codes, embedding)})
        self.post_quant_conv = nn.Conv2d(embedding, latent, 1)
        decoder: Any = nn.ModuleDict()
        decoder["conv_in"] = nn.Conv2d(latent, lowest, 3, padding=1)
        decoder["mid"] = nn.ModuleDict(
            {
                "block_1": block(lowest, lowest),
                "attn_1": ChameleonVQVAEEncoderAttnBlock(lowest),
                "block_2": block(lowest, lowest),
            }
        )
        decoder["up"] = nn.ModuleList()
        last = len(multipliers) - 1
        for level, multiplier in enumerate(multipliers):
            wide = channels * multiplier
            before = lowest if level == last else channels * multipliers[level + 1]
            up = nn.ModuleDict({"block": nn.ModuleList([block(before, wide), block(wide, wide)])})
            if level == last and attends:
                attention = [ChameleonVQVAEEncoderAttnBlock(wide) for _ in range(2)]
                up["attn"] = nn.ModuleList(attention)
            if level:
                up["upsample"] = nn.ModuleDict({"conv": nn.Conv2d(wide, wide, 3, padding=1)})
            decoder["up"].append(up)
        finest = channels * multipliers[0]
        decoder["norm_out"] = nn.GroupNorm(32, finest, eps=1e-6)
        decoder["conv_out"] = nn.Conv2d(finest, 3, 3, padding=1)
        self.decoder: Any = decoder

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Pixels ``[B, 3, H, W]`` of codes ``[B, rows, columns]``."""
        decoder = self.decoder
        latents = self.quantize["embedding"](codes).movedim(-1, 1)
        pixels = decoder["conv_in"](self.post_quant_conv(latents))
        for part in ("block_1", "attn_1", "block_2"):
            pixels = decoder["mid"][part](pixels)
        for up in reversed(decoder["up"]):
            for place, block in enumerate(up["block"]):
                pixels = block(pixels)
                if "attn" in up:
                    pixels = up["attn"][place](pixels)
            if "upsample" in up:
                wider = pixels.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                pixels = up["upsample"]["conv"](wider)
        result: torch.Tensor = decoder["conv_out"](nn.functional.silu(decoder["norm_out"](pixels)))
        return result
