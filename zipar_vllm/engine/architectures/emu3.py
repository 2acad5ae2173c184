"""Emu3's image generation: a Llama whose head has the visual tokens alone.

Source: transformers, ``models/emu3/modeling_emu3.py``; names as its checkpoints have them.
"""

from __future__ import annotations

from ..vllm_models import LlamaModel, VllmConfig, maybe_prefix
from .image_head import ImageHeadModel

FIRST_VISUAL = "<|visual token 000000|>"


class Emu3ForImageGeneration(ImageHeadModel):
    """Emu3 without its image understanding, and a sixth of its head: 32,768 of 184,622 rows."""

    BODY = "text_model.model."
    HEAD = "text_model.lm_head.weight"

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        body = LlamaModel(
            vllm_config=vllm_config.with_hf_config(config.text_config),
            prefix=maybe_prefix(prefix, "text_model.model"),
        )
        first = config.vocabulary_map[FIRST_VISUAL]
        ids = range(first, first + config.vq_config.codebook_size)
        super().__init__(body, config.text_config.hidden_size, ids, prefix)
