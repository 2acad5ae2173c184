"""A Hugging Face causal model for the decoder: no vLLM, any device, for tests and measurements."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from zipar_vllm.attention.interface import AttentionKernel
from zipar_vllm.attention.select import select_kernel

from .batch import StepBatch

IMPLEMENTATION = "zipar"


class TransformersModel:
    """Runs steps; see :class:`~zipar_vllm.decoding.decoder.StepModel`.

    Args:
        model: A causal language model whose attention is transformers' exchangeable function, as
            in Llama and its relatives; its attention is replaced for good.
        num_blocks: KV blocks per layer.
        block_size: KV slots per block.
        kernel: Attention kernel; the fastest that supports the model if None.

    Attributes:
        kernel: The one in use.
    """

    def __init__(
        self, model: Any, *, num_blocks: int, block_size: int, kernel: AttentionKernel | None = None
    ) -> None:
        config = model.config
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        model.set_attn_implementation(IMPLEMENTATION)
        self._model = model
        self.kernel = kernel or select_kernel(
            model.device, model.dtype, heads // kv_heads, size, block_size
        )
        shape = (config.num_hidden_layers, num_blocks, kv_heads, block_size, 2 * size)
        self._caches = torch.zeros(shape, dtype=model.dtype, device=model.device)
        self._metadata: Any = None

    def forward(self, batch: StepBatch) -> torch.Tensor:
        """Hidden states of a step's inputs."""
        self._metadata = self.kernel.prepare(batch.attention)
        output = self._model.get_decoder()(
            input_ids=batch.input_ids.unsqueeze(0),
            position_ids=batch.positions.unsqueeze(0),
            use_cache=False,
            step_model=self,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits over the model's vocabulary."""
        logits: torch.Tensor = self._model.lm_head(hidden)
        return logits

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """One layer's attention; ``[inputs, heads, head_size]``, as the kernels take it."""
        output = torch.empty_like(query)
        cache = self._caches[layer]
        self.kernel.run(query, key, value, cache, self._metadata, scale, output)
        return output


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    step_model: TransformersModel,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention function: ``[1, heads, inputs, head_size]`` in each argument."""
    q, k, v = (part[0].transpose(0, 1).contiguous() for part in (query, key, value))
    return step_model.attend(module.layer_idx, q, k, v, scaling).unsqueeze(0), None


AttentionInterface.register(IMPLEMENTATION, _attend)
