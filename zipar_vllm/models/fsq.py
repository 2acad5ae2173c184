"""The demo model's image tokenizer: a small convolutional autoencoder with scalar quantisation.

Finite scalar quantisation (arXiv 2309.15505): each cell's few channels are squashed and rounded
to a handful of levels, and the mixed-radix number they form is the token. There is no codebook to
learn or to collapse, and neighbouring codes look alike, so that a wrong token is often a small
mistake.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from .base import to_bytes

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PATCH = 4  # the first and last convolution work on 4x4-pixel blocks: cheap on a CPU
FACTOR = 2 * PATCH  # pixels per token, each way


class FSQ(nn.Module):
    """Rounds channel c to ``levels[c]`` values and numbers the combinations.

    Args:
        levels: Number of values of each channel, for example (8, 5, 5, 5): 1000 codes.
    """

    radius: torch.Tensor
    base: torch.Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.num_codes = math.prod(self.levels)
        sizes = torch.tensor(self.levels, dtype=torch.float32)
        base = [math.prod(self.levels[:c]) for c in range(len(self.levels))]
        self.register_buffer("radius", (sizes - 1) / 2, persistent=False)
        self.register_buffer("base", torch.tensor(base), persistent=False)

    def digits(self, z: torch.Tensor) -> torch.Tensor:
        """Continuous level of each channel in [0, levels-1]; float ``[..., C]``, differentiable."""
        return (torch.tanh(z.float()) + 1) * self.radius

    def quantize(self, z: torch.Tensor) -> torch.Tensor:
        """Round with a straight-through gradient; float ``[..., C]``, each channel in [-1, 1]."""
        soft = self.digits(z)
        return (soft + (soft.round() - soft).detach()) / self.radius - 1

    def to_codes(self, z: torch.Tensor) -> torch.Tensor:
        """Token numbers: float ``[..., C]`` to int64 ``[...]`` in [0, num_codes)."""
        return (self.digits(z).round().long() * self.base).sum(-1)

    def from_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Channel values in [-1, 1] of token numbers: int64 ``[...]`` to float32 ``[..., C]``."""
        sizes = torch.tensor(self.levels, device=codes.device)
        digits = codes.unsqueeze(-1) // self.base % sizes
        return digits / self.radius - 1


def _conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    # Replicated borders: with zero padding, plain ground near the border would need other tokens.
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="replicate")


class ResidualBlock(nn.Module):
    """Two convolutions and a skip; float ``[B, C, H, W]`` in and out."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.first = _conv(channels, channels, kernel)
        self.second = _conv(channels, channels, 1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.second(F.silu(self.first(F.silu(x))))
        return out


def _encoder(width: int, channels: int) -> nn.Sequential:
    # Few overlapping convolutions: a token that depends on its close surroundings only is the
    # easiest one to predict, and equal patches get equal tokens wherever they are.
    half = width // 2
    return nn.Sequential(
        nn.PixelUnshuffle(PATCH),
        _conv(3 * PATCH**2, half),
        ResidualBlock(half),
        nn.PixelUnshuffle(2),
        _conv(4 * half, width, 1),
        ResidualBlock(width),
        ResidualBlock(width, 1),
        nn.SiLU(),
        _conv(width, channels, 1),
    )


def _decoder(width: int, channels: int) -> nn.Sequential:
    half = width // 2
    return nn.Sequential(
        _conv(channels, width),
        ResidualBlock(width),
        ResidualBlock(width),
        ResidualBlock(width),
        _conv(width, 4 * half, 1),
        nn.PixelShuffle(2),
        ResidualBlock(half),
        ResidualBlock(half),
        nn.SiLU(),
        _conv(half, 3 * PATCH**2),
        nn.PixelShuffle(PATCH),
    )


class FSQAutoencoder(nn.Module):
    """Pictures to a grid of token numbers and back; one token stands for 8x8 pixels.

    Args:
        levels: See :class:`FSQ`.
        width: Channels at the token grid's resolution; half of it one scale up.
    """

    def __init__(self, levels: Sequence[int] = (8, 5, 5, 5), width: int = 256) -> None:
        super().__init__()
        self.width = width
        self.quantizer = FSQ(levels)
        self.encoder = _encoder(width, len(self.quantizer.levels))
        self.decoder = _decoder(width, len(self.quantizer.levels))

    @classmethod
    def from_pretrained(cls, path: str | Path) -> FSQAutoencoder:
        """Load what :meth:`save_pretrained` wrote, in float32, for inference."""
        folder = Path(path)
        raw = json.loads((folder / CONFIG_FILE).read_text())
        model = cls(levels=raw["levels"], width=raw["width"])
        weights = load_file(folder / WEIGHTS_FILE)
        model.load_state_dict({name: value.float() for name, value in weights.items()})
        return model.eval().requires_grad_(False)

    def save_pretrained(self, path: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write the folder :meth:`from_pretrained` reads."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"levels": list(self.quantizer.levels), "width": self.width, "factor": FACTOR}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        weights = {k: v.detach().to(dtype).contiguous() for k, v in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS_FILE)

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Unquantised channels: float ``[B, 3, H, W]`` in [-1, 1] to ``[B, H/8, W/8, C]``."""
        z: torch.Tensor = self.encoder(images)
        return z.permute(0, 2, 3, 1)

    def render(self, values: torch.Tensor) -> torch.Tensor:
        """Quantised channels ``[B, rows, columns, C]`` to float ``[B, 3, 8*rows, 8*columns]``."""
        pixels: torch.Tensor = self.decoder(values.permute(0, 3, 1, 2))
        return pixels

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens of pictures: float ``[B, 3, H, W]`` in [-1, 1] to int64 ``[B, H/8, W/8]``.

        Raises:
            ValueError: height or width is no multiple of 8.
        """
        if images.shape[-1] % FACTOR or images.shape[-2] % FACTOR:
            raise ValueError(
                f"picture sides must be multiples of {FACTOR}, got {tuple(images.shape)}"
            )
        return self.quantizer.to_codes(self.latents(images))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Draw tokens: int64 ``[B, rows, columns]`` to uint8 ``[B, 8*rows, 8*columns, 3]``.

        Raises:
            ValueError: a token number is outside the codebook.
        """
        count = self.quantizer.num_codes
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < count:
            raise ValueError(f"codes must lie in [0, {count})")
        return to_bytes(self.render(self.quantizer.from_codes(codes)))
