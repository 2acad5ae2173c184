"""Random models of published sizes, for benchmarks that both engines can run."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zipar_vllm.models import DEMO_PATH
from zipar_vllm.models.demo import SPEC_FILE

LLAMAGEN_B = "llamagen-b"
SIDE = 24
CODES = 16_384


@contextmanager
def named_model(model: Path) -> Iterator[Path]:
    """A model's folder: what is given, or a random model made for the moment where it is named."""
    with tempfile.TemporaryDirectory() as folder:
        if str(model) == LLAMAGEN_B:
            model = Path(folder, LLAMAGEN_B)
            make_llamagen_b(model)
        yield model


def make_llamagen_b(path: Path, layers: int = 12) -> None:
    """Save a random Llama of LlamaGen-B's size: 12 layers x 768, 24 x 24 tokens, 16,384 codes.

    Its rotary embedding is Llama's own, so that stock vLLM can run it. Text and layout are the
    embedded model's; its pixel decoder stands in too, for no pixels are rendered.

    Args:
        path: A folder that does not exist yet.
        layers: Of the transformer.
    """
    shutil.copytree(DEMO_PATH, path, ignore=shutil.ignore_patterns("*.png", "model.safetensors.*"))
    layout = json.loads((path / SPEC_FILE).read_text())
    layout |= {
        "grids": [{"size": f"{8 * SIDE}x{8 * SIDE}", "rows": SIDE, "columns": SIDE}],
        "row_terminator_id": None,
        "image_token_count": CODES,
    }
    (path / SPEC_FILE).write_text(json.dumps(layout))
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        vocab_size=layout["image_token_start"] + CODES,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
