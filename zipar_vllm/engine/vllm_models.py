"""vLLM's names that model classes are built of, apart from :mod:`.vllm_api`.

They are imported where a model of :mod:`.architectures` is loaded, and nowhere before.
"""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import SupportsQuant
from vllm.model_executor.models.llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
)
from vllm.model_executor.models.qwen3 import Qwen3Model
from vllm.model_executor.models.utils import AutoWeightsLoader, maybe_prefix

__all__ = [
    "AutoWeightsLoader",
    "LlamaAttention",
    "LlamaDecoderLayer",
    "LlamaForCausalLM",
    "LlamaModel",
    "LogitsProcessor",
    "ParallelLMHead",
    "Qwen3Model",
    "RotaryEmbedding",
    "SupportsQuant",
    "VllmConfig",
    "get_tensor_model_parallel_rank",
    "get_tensor_model_parallel_world_size",
    "maybe_prefix",
]
