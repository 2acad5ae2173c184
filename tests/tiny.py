"""Tiny random image models in the demo family's layout, for tests that need a real engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 160
TEXT_TOKENS = 32
IMAGE_TOKENS = 100
ROW_TERMINATOR = 3


def make_tiny_model(
    path: Path,
    *,
    row_terminator: bool,
    grids: Mapping[str, tuple[int, int]],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    initializer_range: float = 0.4,
) -> None:
    """Save a random Llama with grouped key heads, whose greedy outputs are diverse.

    ``grids``: rows and columns by size string. The folder has no pixel decoder.
    """
    path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        initializer_range=initializer_range,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(path)
    layout = {
        "family": "zipar-demo",
        "grids": [{"size": s, "rows": r, "columns": c} for s, (r, c) in grids.items()],
        "row_terminator_id": ROW_TERMINATOR if row_terminator else None,
        "image_token_start": TEXT_TOKENS,
        "image_token_count": IMAGE_TOKENS,
        "prompt_prefix_ids": [1],
        "prompt_suffix_ids": [2],
        "max_text_tokens": 64,
        "defaults": {
            "window": 4,
            "guidance_scale": 1.0,
            "temperature": 0.0,
            "top_k": 0,
            "top_p": 1.0,
        },
        "styles": [],
        "concepts": [],
    }
    (path / "image_model.json").write_text(json.dumps(layout))
    words = {f"w{index}": index for index in range(TEXT_TOKENS - 1)}
    words["[UNK]"] = TEXT_TOKENS - 1
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
