"""Janus-Pro's image generation: a Llama with a head and input embeddings of its own for images.

Source: transformers, ``models/janus/modeling_janus.py``, whose names the checkpoint has.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.janus.modeling_janus import JanusVQVAEAlignerMLP

from ..vllm_models import (
    AutoWeightsLoader,
    LlamaModel,
    LogitsProcessor,
    ParallelLMHead,
    VllmConfig,
    maybe_prefix,
)
from .image_head import BodyModel

BODY = "model.language_model."
HEAD = "model.generation_head."
TEXT_EMBEDDINGS = f"{BODY}embed_tokens.weight"
IMAGE_EMBEDDINGS = "model.generation_embeddings.weight"
ALIGNER = "model.generation_aligner."


class GenerationHead(nn.Module):
    """Logits of image tokens alone: two layers, the second sharded over its outputs."""

    def __init__(self, config: Any, prefix: str) -> None:
        super().__init__()
        self.proj_out = nn.Linear(config.image_token_embed_dim, config.projection_dim)
        self.activation = ACT2FN[config.hidden_act]
        self.vision_head = ParallelLMHead(
            config.num_embeddings,
            config.projection_dim,
            bias=True,
            prefix=maybe_prefix(prefix, "vision_head"),
        )
        self.logits_processor = LogitsProcessor(config.num_embeddings)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Logits by code, ``[n, num_codes]``."""
        features = self.activation(self.proj_out(hidden))
        logits: torch.Tensor | None = self.logits_processor(
            self.vision_head, features, self.vision_head.bias
        )
        return logits


class JanusForImageGeneration(BodyModel):
    """Janus-Pro without its image understanding and its text head.

    Code k has the id ``text vocabulary + k``. What Janus feeds for it, its generation embedding
    behind the aligner, depends on nothing else, so it is computed once and stands in the embedding
    table behind the text's.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        body = copy.deepcopy(config.text_config)
        body.vocab_size += config.vq_config.num_embeddings
        super().__init__(
            LlamaModel(
                vllm_config=vllm_config.with_hf_config(body),
                prefix=maybe_prefix(prefix, "model.language_model"),
            )
        )
        self.config = config
        self.generation_head = GenerationHead(
            config.vq_config, maybe_prefix(prefix, "model.generation_head")
        )

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits by code, ``[n, num_codes]``; on the first rank."""
        return self.generation_head(hidden_states)  # type: ignore[no-any-return]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint's tensors; those of image understanding are left out."""
        embeddings: dict[str, torch.Tensor] = {}
        head: dict[str, torch.Tensor] = {}

        def body() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                if name in (TEXT_EMBEDDINGS, IMAGE_EMBEDDINGS) or name.startswith(ALIGNER):
                    embeddings[name] = tensor
                elif name.startswith(HEAD):
                    head[name.removeprefix(HEAD)] = tensor
                elif name.startswith(BODY):
                    yield name.removeprefix(BODY), tensor
            yield "embed_tokens.weight", self._embedding_table(embeddings)

        loaded = {f"model.{name}" for name in self.model.load_weights(body())}
        loader = AutoWeightsLoader(self.generation_head)
        return loaded | {f"generation_head.{name}" for name in loader.load_weights(head.items())}

    @torch.no_grad()
    def _embedding_table(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """Text embeddings, then what is fed for each code, in the model's dtype."""
        dtype = self.model.embed_tokens.weight.dtype
        aligner = JanusVQVAEAlignerMLP(self.config.vq_config)
        aligner.load_state_dict(
            {
                name.removeprefix(ALIGNER): tensor
                for name, tensor in tensors.items()
                if name.startswith(ALIGNER)
            }
        )
        images = aligner.to(tensors[IMAGE_EMBEDDINGS].device, dtype)(
            tensors[IMAGE_EMBEDDINGS].to(dtype)
        )
        return torch.cat([tensors[TEXT_EMBEDDINGS].to(dtype), images])
