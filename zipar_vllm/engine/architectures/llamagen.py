"""LlamaGen: a Llama whose rotary embedding is of rows and columns.

Source: github.com/FoundationVision/LlamaGen, ``autoregressive/models/gpt.py``; tensors are named as
Llama's, which :mod:`zipar_vllm.models.llamagen_files` writes.
"""

from __future__ import annotations

from typing import Any

import torch

from ..vllm_models import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LogitsProcessor,
    ParallelLMHead,
    RotaryEmbedding,
    VllmConfig,
    maybe_prefix,
)


class GridRotaryEmbedding(RotaryEmbedding):  # type: ignore[misc]
    """Turns half of a head's pairs by the token's row and the other half by its column.

    Pairs are neighbours in the head. What stands before the picture has cosine and sine 0: not
    unturned, but with queries and keys of 0, as the authors' table has it.

    Args:
        head_size: A multiple of 4.
        prompt: Positions before the picture.
        side: Rows of the picture, and columns.
        base: Of the angles.
        dtype: The model's.
    """

    def __init__(
        self, head_size: int, prompt: int, side: int, base: float, dtype: torch.dtype
    ) -> None:
        length = prompt + side * side
        super().__init__(head_size, head_size, length, base, False, dtype, init_cache=False)
        speeds = base ** -(torch.arange(0, head_size // 2, 2) / (head_size // 2))
        angles = torch.outer(torch.arange(side), speeds)
        shape = (side, side, len(speeds))
        rows, columns = angles[:, None].expand(shape), angles[None].expand(shape)
        turned = torch.cat([rows, columns], dim=-1).flatten(0, 1)
        table = torch.zeros(length, head_size)
        table[prompt:] = torch.cat([turned.cos(), turned.sin()], dim=-1)
        self.register_buffer("cos_sin_cache", table.to(dtype), persistent=False)


class LlamaGenAttention(LlamaAttention):  # type: ignore[misc]
    """Llama's attention, but for the rotary embedding."""

    def _init_rotary_emb(self, config: Any, quant_config: Any) -> None:
        self.rotary_emb = GridRotaryEmbedding(
            self.head_dim,
            config.condition_length,
            config.grid_side,
            config.rope_parameters["rope_theta"],
            torch.get_default_dtype(),
        )


class LlamaGenLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """Llama's layer, but for the attention."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix, attn_layer_type=LlamaGenAttention)


class LlamaGenForImageGeneration(LlamaForCausalLM):  # type: ignore[misc]
    """LlamaGen with its classes behind its codes in one embedding table, and a head of codes."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=LlamaGenLayer)
        self.lm_head = ParallelLMHead(
            self.config.num_codes,
            self.config.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=maybe_prefix(prefix, "lm_head"),
        )
        self.logits_processor = LogitsProcessor(self.config.num_codes)
