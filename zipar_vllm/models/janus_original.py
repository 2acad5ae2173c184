"""Janus-Pro in the authors' own layout, ``deepseek-ai/Janus-Pro-1B``, -7B, made transformers'.

What only reads images is left out. Names and configuration correspond as in transformers'
``models/janus/convert_janus_weights_to_hf.py``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from .checkpoint import Checkpoint
from .shards import save_shards

PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

PIXELS = "gen_vision_model."
_PIXELS = re.escape(PIXELS)
RENAMES = {
    r"language_model\.model\.": "model.language_model.",
    r"gen_embed\.": "model.generation_embeddings.",
    r"gen_aligner\.layers\.0\.": "model.generation_aligner.fc1.",
    r"gen_aligner\.layers\.2\.": "model.generation_aligner.hidden_layers.0.",
    r"gen_head\.output_mlp_projector\.": "model.generation_head.proj_out.",
    r"gen_head\.vision_head\.": "model.generation_head.vision_head.",
    rf"{_PIXELS}decoder\.mid\.0\.": "model.vqmodel.decoder.mid.block_1.",
    rf"{_PIXELS}decoder\.mid\.1\.": "model.vqmodel.decoder.mid.attn_1.",
    rf"{_PIXELS}decoder\.mid\.2\.": "model.vqmodel.decoder.mid.block_2.",
    rf"{_PIXELS}decoder\.conv_blocks\.(\d+)\.res\.": r"model.vqmodel.decoder.up.\1.block.",
    rf"{_PIXELS}decoder\.conv_blocks\.": "model.vqmodel.decoder.up.",
    rf"{_PIXELS}(decoder|post_quant_conv|quantize\.embedding)\.": r"model.vqmodel.\1.",
}
"""Beginnings of the tensors' names that are needed, in order, and what they become."""


def convert(source: Checkpoint, target: Path) -> None:
    """Write a checkpoint in transformers' layout.

    Args:
        source: The authors' checkpoint.
        target: An empty folder.

    Raises:
        UnusableModelError: a file or a setting is missing.
    """
    for name in TOKENIZER:
        shutil.copy(source.file(name), target / name)
    config = _config(source)
    config.architectures = ["JanusForConditionalGeneration"]
    config.save_pretrained(target)
    save_shards(target, [partial(_read, file) for file in _files(source)])


def _files(source: Checkpoint) -> list[Path]:
    if source.find(PICKLED_INDEX) is None:
        return [source.file(PICKLED)]
    names = sorted(set(source.json(PICKLED_INDEX)["weight_map"].values()))
    return [source.file(name) for name in names]


def _read(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    return renamed(torch.load(file, map_location="cpu", mmap=True, weights_only=True))


def renamed(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that are needed, as transformers names them."""
    for name, tensor in tensors.items():
        for pattern, new in RENAMES.items():
            if re.match(pattern, name):
                yield re.sub(f"^{pattern}", new, name), tensor
                break


def _config(source: Checkpoint) -> Any:
    """The configuration in transformers' terms; a Llama's own fields are called alike."""
    parts = source.config
    try:
        vision = parts["vision_config"]["params"]
        vq, aligner, head = (
            parts[f"gen_{part}_config"]["params"] for part in ("vision", "aligner", "head")
        )
        text = {
            key: value for key, value in parts["language_config"].items() if key != "model_type"
        }
        dtype = text.pop("torch_dtype", "bfloat16")
        return JanusConfig(
            text_config=LlamaConfig(**text),
            vision_config=JanusVisionConfig(image_size=vision["image_size"]),
            vq_config=JanusVQVAEConfig(
                embed_dim=vq["n_embed"],
                num_embeddings=vq["image_token_size"],
                projection_dim=aligner["n_embed"],
                num_hidden_layers=aligner["depth"],
                image_token_embed_dim=head["image_token_embed"],
            ),
            dtype=dtype,
        )
    except KeyError as error:
        raise source.error(f"config.json has no {error}") from None
