"""Emu3's image generation: a Llama whose head has the visual tokens alone.

Source: transformers, ``models/emu3/modeling_emu3.py``; names as its checkpoints have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..vllm_models import (
    LlamaForCausalLM,
    LlamaModel,
    LogitsProcessor,
    ParallelLMHead,
    SupportsQuant,
    VllmConfig,
    maybe_prefix,
)

BODY = "text_model.model."
HEAD = "text_model.lm_head.weight"
FIRST_VISUAL = "<|visual token 000000|>"


class Emu3ForImageGeneration(nn.Module, SupportsQuant):  # type: ignore[misc]
    """Emu3 without its image understanding, and a sixth of its head: 32,768 of 184,622 rows."""

    packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.model = LlamaModel(
            vllm_config=vllm_config.with_hf_config(config.text_config),
            prefix=maybe_prefix(prefix, "text_model.model"),
        )
        num_codes, first = config.vq_config.codebook_size, config.vocabulary_map[FIRST_VISUAL]
        self._visual = slice(first, first + num_codes)
        self.lm_head = ParallelLMHead(
            num_codes,
            config.text_config.hidden_size,
            prefix=maybe_prefix(prefix, "text_model.lm_head"),
        )
        self.logits_processor = LogitsProcessor(num_codes)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Input embeddings of text and image tokens."""
        return self.model.embed_input_ids(input_ids)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states, ``[n, hidden]``."""
        return self.model(  # type: ignore[no-any-return]
            input_ids, positions, intermediate_tensors, inputs_embeds
        )

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits by code, ``[n, num_codes]``; on the first rank."""
        logits: torch.Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint's tensors; the pixel coder's are left out."""

        def body() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                if name == HEAD:
                    weight = self.lm_head.weight
                    weight.weight_loader(weight, tensor[self._visual])
                elif name.startswith(BODY):
                    yield name.removeprefix(BODY), tensor

        loaded = {f"model.{name}" for name in self.model.load_weights(body())}
        return loaded | {"lm_head.weight"}
