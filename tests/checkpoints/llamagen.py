"""Small random LlamaGen files as they are published, and the published architecture in plain torch.

Source: github.com/FoundationVision/LlamaGen, ``autoregressive/models/gpt.py`` and
``tokenizer/tokenizer_image/vq_model.py``, restated. Real numbers of codes and classes, small
widths.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from zipar_vllm.models.llamagen_files import convert

CODES, CLASSES = 16_384, 1000
WIDTH, HEADS, LAYERS = 64, 4, 2
CHANNELS = (1, 1, 2, 2, 4)


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + torch.randn(width) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight


def linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=2.0 / inputs**0.5)
    return layer


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv, self.wo = linear(width, 3 * width), linear(width, width)

    def forward(
        self, x: torch.Tensor, turns: torch.Tensor, visible: torch.Tensor, cache: dict[str, Any]
    ) -> torch.Tensor:
        count, width = x.shape
        q, k, v = self.wqkv(x).view(count, 3, self.heads, -1).unbind(1)
        q, k = (self.turn(part, turns) for part in (q, k))
        cache["k"] = torch.cat([cache["k"], k]) if cache else k
        cache["v"] = torch.cat([cache["v"], v]) if "v" in cache else v
        scores = torch.einsum("qhd,khd->hqk", q, cache["k"]) / (width // self.heads) ** 0.5
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return self.wo(torch.einsum("hqk,khd->qhd", weights, cache["v"]).reshape(count, width))

    @staticmethod
    def turn(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Pairs of neighbours as complex numbers, times a complex number."""
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns[:, None]).flatten(-2)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 256 * -(-int(2 * 4 * width / 3) // 256)
        self.w1, self.w2, self.w3 = (
            linear(*sizes) for sizes in ((width, hidden), (hidden, width), (width, hidden))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(width, heads), FeedForward(width)
        self.attention_norm, self.ffn_norm = Norm(width), Norm(width)

    def forward(self, x: torch.Tensor, *step: Any) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), *step)
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    """The published transformer; also as a causal model of codes and, behind them, classes."""

    def __init__(
        self, side: int, width: int = WIDTH, heads: int = HEADS, layers: int = LAYERS
    ) -> None:
        super().__init__()
        self.side, self.head_size = side, width // heads
        self.cls_embedding = nn.ModuleDict({"embedding_table": nn.Embedding(CLASSES + 1, width)})
        self.tok_embeddings = nn.Embedding(CODES, width)
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.output = Norm(width), linear(width, CODES)
        self.turns = torch.stack([self.turn(position) for position in range(1 + side**2)])

    def turn(self, position: int) -> torch.Tensor:
        """What the pairs at a position are multiplied by: 0 before the picture."""
        if position == 0:
            return torch.zeros(self.head_size // 2, dtype=torch.complex64)
        quarter = self.head_size // 4
        speeds = [10_000 ** (-2 * i / (self.head_size // 2)) for i in range(quarter)]
        row, column = divmod(position - 1, self.side)
        angles = torch.tensor([at * speed for at in (row, column) for speed in speeds])
        return torch.polar(torch.ones_like(angles), angles)

    def __call__(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past_key_values: list[dict[str, Any]] | None,
        use_cache: bool,
    ) -> Any:
        ids, caches = input_ids[0], past_key_values or [{} for _ in self.layers]
        table = torch.cat([self.tok_embeddings.weight, self.cls_embedding.embedding_table.weight])
        x = table[ids]
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, self.turns[position_ids[0]], attention_mask[0, 0] == 0, cache)
        return SimpleNamespace(logits=self.output(self.norm(x))[None], past_key_values=caches)

    @torch.no_grad()
    def generate(self, label: int, guidance: float, count: int | None = None) -> list[int]:
        """The greedy picture or its beginning, everything computed anew for each token."""
        lanes = [label] if guidance == 1 else [label, CLASSES]
        codes: list[int] = []
        while len(codes) < (count or self.side**2):
            logits = []
            for lane in lanes:
                ids = torch.tensor([[CODES + lane, *codes]])
                length = ids.shape[1]
                mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
                output = self(ids, torch.arange(length)[None], mask, None, False)
                logits.append(output.logits[0, -1])
            guided = logits[-1] + guidance * (logits[0] - logits[-1])
            codes.append(int(guided.argmax()))
        return codes


class ResnetBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, inputs, 1e-6), nn.GroupNorm(32, outputs, 1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        changed = self.conv1(functional.silu(self.norm1(x)))
        changed = self.conv2(functional.silu(self.norm2(changed)))
        return changed + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class PixelAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).mT for part in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(mixed.mT.view_as(x))


class Level(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, lowest: bool, highest: bool):
        super().__init__()
        self.res = nn.ModuleList(
            ResnetBlock(outputs if block else inputs, outputs) for block in range(blocks)
        )
        self.attn = nn.ModuleList(PixelAttention(outputs) for _ in range(blocks) if lowest)
        if not highest:
            self.upsample = nn.ModuleDict({"conv": nn.Conv2d(outputs, outputs, 3, padding=1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        if hasattr(self, "upsample"):
            x = self.upsample["conv"](x.repeat_interleave(2, -1).repeat_interleave(2, -2))
        return x


class PixelDecoder(nn.Module):
    def __init__(self, latent: int, base: int, blocks: int) -> None:
        super().__init__()
        widths = [base * multiple for multiple in reversed(CHANNELS)]
        self.conv_in = nn.Conv2d(latent, widths[0], 3, padding=1)
        self.mid = nn.ModuleList(
            [
                ResnetBlock(widths[0], widths[0]),
                PixelAttention(widths[0]),
                ResnetBlock(widths[0], widths[0]),
            ]
        )
        last = len(widths) - 1
        self.conv_blocks = nn.ModuleList(
            Level(widths[max(level - 1, 0)], width, blocks, level == 0, level == last)
            for level, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(32, widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for module in (*self.mid, *self.conv_blocks):
            x = module(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class VQModel(nn.Module):
    """The published pixel decoder; of the encoder, whose tensors are published beside it, one."""

    def __init__(self, latent: int = 64, base: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(CODES, 8)})
        self.quantize.register_buffer("codebook_used", torch.zeros(65_536))
        self.encoder = nn.ModuleDict({"conv_in": nn.Conv2d(3, base, 3, padding=1)})
        self.quant_conv, self.post_quant_conv = nn.Conv2d(latent, 8, 1), nn.Conv2d(8, latent, 1)
        self.decoder = PixelDecoder(latent, base, blocks)
        with torch.no_grad():  # published ones answer in about [-1, 1]
            self.decoder.conv_out.weight.div_(4)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Pixels in about [-1, 1], ``[B, 3, H, W]``, of codes ``[B, rows, columns]``."""
        entries = functional.normalize(self.quantize["embedding"].weight, dim=-1)[codes]
        return self.decoder(self.post_quant_conv(entries.permute(0, 3, 1, 2)))


def make_files(folder: Path, side: int = 8, **shape: int) -> tuple[Path, Path]:
    """Save a transformer as DDP training does and a pixel decoder."""
    torch.manual_seed(0)
    paths = folder / f"c2i_tiny_{16 * side}.pt", folder / "vq_ds16_c2i.pt"
    options = argparse.Namespace(gpt_model="GPT-tiny")
    transformer = Transformer(side, **shape).state_dict()
    torch.save({"model": transformer, "steps": 1, "args": options}, paths[0])
    torch.save({"model": VQModel().state_dict()}, paths[1])
    return paths


def load_oracles(path: Path, side: int = 8, **shape: int) -> tuple[Transformer, VQModel]:
    """The modules of what :func:`make_llamagen` saved, from the files as they are published."""
    folder, modules = path.parent, (Transformer(side, **shape).eval(), VQModel().eval())
    for module, name in zip(modules, (f"c2i_tiny_{16 * side}.pt", "vq_ds16_c2i.pt"), strict=True):
        contents = torch.load(folder / name, weights_only=False)
        module.load_state_dict(contents["model"])
    return modules


def make_llamagen(path: Path, side: int = 8, **shape: int) -> None:
    """Save files as they are published, beside ``path``, and convert them to it."""
    files = make_files(path.parent, side, **shape)
    convert(*files, path, heads=shape.get("heads", HEADS))
