"""Lumina-mGPT's image generation: a Llama that norms each head's queries and keys (Chameleon).

Source: transformers, ``models/chameleon/modeling_chameleon.py``. The checkpoints are of its first
version, which stored one norm for all heads of a shard of the training.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from zipar_vllm.models.lumina import image_ids

from ..vllm_models import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaModel,
    VllmConfig,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    maybe_prefix,
)
from .image_head import ImageHeadModel

EPSILON = 1e-5


class HeadNorm(nn.Module):
    """LayerNorm of each head by itself.

    Args:
        total: Heads of the model.
        heads: Heads of this rank.
        head_size: Width of a head.
    """

    def __init__(self, total: int, heads: int, head_size: int) -> None:
        super().__init__()
        self._total = total
        self.weight = nn.Parameter(torch.empty(heads, head_size))
        self.bias = nn.Parameter(torch.empty(heads, head_size))
        for parameter in (self.weight, self.bias):
            parameter.weight_loader = self._load  # type: ignore[attr-defined]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Norm ``[n, heads * head_size]``."""
        heads = states.unflatten(-1, self.weight.shape)
        normed = F.layer_norm(heads, heads.shape[-1:], eps=EPSILON)
        return (normed * self.weight + self.bias).flatten(-2)

    def _load(self, parameter: nn.Parameter, stored: torch.Tensor) -> None:
        """Take this rank's heads of ``[shards, head_size]``, each shard's as many."""
        rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        first = rank * self._total // ranks  # more ranks than heads: some have the same
        every = stored.repeat_interleave(self._total // len(stored), dim=0)
        parameter.data.copy_(every[first : first + len(parameter)])


class LuminaAttention(LlamaAttention):  # type: ignore[misc]
    """Llama's attention, its queries and keys normed before they are rotated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.q_norm = HeadNorm(self.total_num_heads, self.num_heads, self.head_dim)
        self.k_norm = HeadNorm(self.total_num_kv_heads, self.num_kv_heads, self.head_dim)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Attend; ``[n, hidden]`` in and out."""
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q, k = self.rotary_emb(positions, self.q_norm(q), self.k_norm(k))
        output, _ = self.o_proj(self.attn(q, k, v))
        return output  # type: ignore[no-any-return]


class LuminaDecoderLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """Llama's layer with that attention."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix, attn_layer_type=LuminaAttention)


class LuminaForImageGeneration(ImageHeadModel):
    """Lumina-mGPT with an eighth of its head: the 8,192 image tokens of 65,536."""

    LEFT_OUT = ("model.vqmodel.",)

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        body = LlamaModel(
            vllm_config=vllm_config,
            prefix=maybe_prefix(prefix, "model"),
            layer_type=LuminaDecoderLayer,
        )
        super().__init__(body, config.hidden_size, image_ids(config.vocabulary_map), prefix)
