"""A small Llama in plain torch, with Hugging Face's parameter names and arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F

HEAD_DIM = 64  # vLLM's attention wants a common head size


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shape of the decoder; ``levels`` are the image tokenizer's (see ``FactoredTable``)."""

    vocab_size: int
    image_start: int
    levels: tuple[int, ...]
    hidden: int = 256
    layers: int = 6
    ffn: int = 704
    rope_theta: float = 1000.0  # distances are at most 700, so a short base uses more of the head
    eps: float = 1e-5

    @property
    def heads(self) -> int:
        return self.hidden // HEAD_DIM

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class FactoredTable(nn.Module):
    """A row per token, plus, for image tokens, a shared row per level of each channel.

    Codes that differ in one level look alike, and here they share most of what is learnt about
    them. :meth:`table` adds it all up, so the exported model has an ordinary table.
    """

    digits: torch.Tensor

    def __init__(self, config: DecoderConfig, std: float) -> None:
        super().__init__()
        self.start = config.image_start
        self.weight = nn.Parameter(torch.randn(config.vocab_size, config.hidden) * std)
        self.shared = nn.Parameter(torch.randn(sum(config.levels), config.hidden) * std)
        count = int(torch.tensor(config.levels).prod())
        code, offset, columns = torch.arange(count), 0, []
        for levels in config.levels:
            columns.append(code % levels + offset)
            code, offset = code // levels, offset + levels
        self.register_buffer("digits", torch.stack(columns, 1), persistent=False)

    def table(self) -> torch.Tensor:
        """The whole table, float ``[vocab_size, hidden]``."""
        image = self.shared[self.digits].sum(1)
        after = self.weight.shape[0] - self.start - image.shape[0]
        return self.weight + F.pad(image, (0, 0, self.start, after))


class Attention(nn.Module):
    """Multi-head attention with rotary positions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        size = config.hidden
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(size, size, bias=False) for _ in range(4)
        )

    def qkv(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries and keys, and values; each ``[B, heads, L, 64]``."""
        batch, length, _ = x.shape
        q, k, v = (
            proj(x).view(batch, length, self.heads, HEAD_DIM).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotate(q, rope), rotate(k, rope), v

    def output(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Attend under ``mask`` (bool, broadcastable to ``[B, heads, L, keys]``)."""
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def rotate(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding, halves layout as in Hugging Face's Llama; ``[B, heads, L, 64]``."""
    cos, sin = rope
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = Mlp(config)
        self.input_layernorm = nn.RMSNorm(config.hidden, config.eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden, config.eps)

    def forward(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        q, k, v = self.self_attn.qkv(self.input_layernorm(x), rope)
        x = x + self.self_attn.output(q, k, v, mask)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Text and image tokens in, logits of image tokens out."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = FactoredTable(config, std=0.5)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, config.eps)
        self.lm_head = FactoredTable(config, std=0.01)
        self._init_layers()

    def _init_layers(self) -> None:
        for layer in self.layers:
            for name, weight in layer.named_parameters():
                if weight.ndim == 2:
                    nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * 0.8)
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.data.mul_(0.1)

    def blocks(self) -> list[Layer]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def rope(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines for int64 positions ``[L]``; two float ``[L, 64]``."""
        half = torch.arange(0, HEAD_DIM, 2, device=positions.device).float() / HEAD_DIM
        angles = positions.float()[:, None] * self.config.rope_theta**-half
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()

    def image_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits over the image tokens only; ``[..., hidden]`` to ``[..., count]``."""
        start = self.config.image_start
        table = self.lm_head.table()[start : start + len(self.lm_head.digits)]
        return F.linear(self.norm(hidden), table)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Hidden states (before the last norm).

        Args:
            ids: int64 ``[B, L]``.
            mask: bool, broadcastable to ``[B, heads, L, L]`` (query, key).

        Returns:
            float ``[B, L, hidden]``.
        """
        x = F.embedding(ids, self.embed_tokens.table())
        rope = self.rope(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x, rope, mask)
        return x
