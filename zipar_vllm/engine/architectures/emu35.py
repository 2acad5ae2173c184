"""Emu3.5's image generation: a Qwen3 whose head has the visual tokens alone.

Source: github.com/baaivision/Emu3.5, ``src/emu3p5/modeling_emu3.py``, whose layers and names are
Qwen3's.
"""

from __future__ import annotations

from ..vllm_models import Qwen3Model, VllmConfig, maybe_prefix
from .image_head import ImageHeadModel


class Emu35ForImageGeneration(ImageHeadModel):
    """Emu3.5 with half of its head: the 131,072 visual tokens of 282,926."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        config = vllm_config.model_config.hf_config
        body = Qwen3Model(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        super().__init__(body, config.hidden_size, config.image_ids, prefix)
