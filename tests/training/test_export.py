"""The exported checkpoint: a Llama that computes what the trained model does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from training.export import DEFAULTS, llama_config, llama_weights
from training.masks import COLUMNS, window_mask
from training.model import Decoder, DecoderConfig
from zipar_vllm.models import DEMO_PATH

IMAGE_START, IMAGE_COUNT = 64, 32


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(128, IMAGE_START, (4, 4, 2), hidden=128, layers=2, ffn=64)
    model = Decoder(config)
    for parameter in model.lm_head.parameters():
        torch.nn.init.normal_(parameter)
    return model.eval()


@torch.no_grad()
def test_the_llama_gives_the_trained_models_logits(model: Decoder) -> None:
    """In raster order, whose mask is the causal one; the weights are rounded to bfloat16."""
    weights = llama_weights(model)
    llama = LlamaForCausalLM(LlamaConfig(**llama_config(model, bos=1, pad=0)))
    llama.load_state_dict({name: weight.float() for name, weight in weights.items()})
    ids = torch.randint(IMAGE_START, IMAGE_START + IMAGE_COUNT, (2, 605))
    got = llama.eval()(ids).logits[..., IMAGE_START : IMAGE_START + IMAGE_COUNT]
    wanted = model.image_logits(model(ids, window_mask(COLUMNS, 5)))
    assert torch.nn.functional.cosine_similarity(got, wanted, dim=-1).min() > 0.999
    assert got.std() > 0.1


def test_exported_tables_hold_the_shared_rows(model: Decoder) -> None:
    weights = llama_weights(model)
    table = weights["model.embed_tokens.weight"].float()
    code = 1 + 4 * 2 + 16 * 1
    expected = model.embed_tokens.weight[64 + code] + model.embed_tokens.shared[
        [1, 4 + 2, 8 + 1]
    ].sum(0)
    torch.testing.assert_close(table[64 + code], expected.detach(), rtol=1e-2, atol=1e-2)
    assert weights["lm_head.weight"][:64].abs().max() == 0
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}


def test_the_shipped_model_has_the_recipes_defaults() -> None:
    shipped = json.loads((Path(DEMO_PATH) / "image_model.json").read_text())
    assert shipped["defaults"] == DEFAULTS
