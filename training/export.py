"""Writes the folder that is shipped: Hugging Face layout, bfloat16, and ``image_model.json``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from training.captions import BOS, PAD, UNK, build_tokenizer, text_vocabulary
from training.concepts import STYLES, all_concepts
from training.data import SIZE
from training.decoder import load_decoder
from training.masks import COLUMNS, ROWS
from training.model import HEAD_DIM, Decoder
from zipar_vllm.models.fsq import FSQAutoencoder

MAX_POSITIONS = 1024
MAX_TEXT_TOKENS = 64
MAX_FILE_BYTES = 16 * 2**20  # Git hosts and reviewers prefer small files
# Chosen by looking at all concepts: ten seeds give at least nine pictures of each, as good as
# cooler or guided ones; see the model card.
DEFAULTS: dict[str, float] = {
    "window": 4,
    "guidance_scale": 1.0,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.001,
}


def llama_weights(model: Decoder) -> dict[str, torch.Tensor]:
    """Parameters under Hugging Face's names, the factored tables summed up; bfloat16.

    Output rows of tokens that are never sampled (text, terminator) are zero: they were not trained.
    """
    count = len(model.lm_head.digits)
    start = model.config.image_start
    head = torch.zeros_like(model.lm_head.weight)
    head[start : start + count] = model.lm_head.table()[start : start + count]
    weights = {"model.embed_tokens.weight": model.embed_tokens.table(), "lm_head.weight": head}
    for name, value in model.state_dict().items():
        if name.startswith(("layers.", "norm.")):
            weights[f"model.{name}"] = value
    return {k: v.detach().to(torch.bfloat16).contiguous() for k, v in weights.items()}


def llama_config(model: Decoder, bos: int, pad: int) -> dict[str, Any]:
    """``config.json`` of the decoder."""
    config = model.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": MAX_POSITIONS,
        "bos_token_id": bos,
        "eos_token_id": None,
        "pad_token_id": pad,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def image_model(known: list[str], tokens: int) -> dict[str, Any]:
    """``image_model.json``: what the engine needs to know beyond the Llama."""
    entries = text_vocabulary(all_concepts())
    return {
        "family": "zipar-demo",
        "grids": [{"size": f"{SIZE}x{SIZE}", "rows": ROWS, "columns": COLUMNS}],
        "row_terminator_id": entries.index("<eol>"),
        "image_token_start": len(entries),
        "image_token_count": tokens,
        "prompt_prefix_ids": [entries.index(BOS)],
        "prompt_suffix_ids": [entries.index("<boi>")],
        "max_text_tokens": MAX_TEXT_TOKENS,
        "defaults": DEFAULTS,
        "styles": list(STYLES),
        "concepts": known,
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def export(work: Path, output: Path, checkpoint: str = "decoder.pt") -> None:
    """Write everything but the card, the samples and the licence texts.

    Raises:
        ValueError: a weight file came out larger than ``MAX_FILE_BYTES``.
    """
    model, state = load_decoder(work / checkpoint)
    autoencoder = FSQAutoencoder.from_pretrained(work / "vq")
    output.mkdir(parents=True, exist_ok=True)
    tokenizer: Any = build_tokenizer(all_concepts(), autoencoder.quantizer.num_codes)
    entries = text_vocabulary(all_concepts())
    tokenizer.save(str(output / "tokenizer.json"))
    _write(
        output / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": MAX_POSITIONS,
            "bos_token": BOS,
            "pad_token": PAD,
            "unk_token": UNK,
            "clean_up_tokenization_spaces": False,
        },
    )
    _write(output / "config.json", llama_config(model, entries.index(BOS), entries.index(PAD)))
    _write(
        output / "generation_config.json",
        {"bos_token_id": entries.index(BOS), "pad_token_id": entries.index(PAD), "do_sample": True},
    )
    codes = autoencoder.quantizer.num_codes
    _write(output / "image_model.json", image_model(state["concepts"], codes))
    save_file(llama_weights(model), output / "model.safetensors", metadata={"format": "pt"})
    (output / "vq").mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(work / "vq" / name, output / "vq" / name)
    for path in output.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors makes private files
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"{path.name} is {path.stat().st_size} bytes: split it in shards")
