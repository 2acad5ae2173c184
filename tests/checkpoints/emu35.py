"""A small random Emu3.5-Image as the authors publish it: real vocabulary and ids, small widths.

Beside it stands the vision tokenizer, a checkpoint of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from .emu3_text import save_text_side
from .taming import TamingDecoder

VOCABULARY, CODES, FIRST_ID = 282_926, 131_072, 151_854
END_OF_ROW, END_OF_IMAGE = 151_846, 151_853
SPECIAL = {
    "<|endoftext|>": 151_643,
    "<|im_start|>": 151_644,
    "<|im_end|>": 151_645,
    **{f"<|extra_{number}|>": 151_646 + number for number in range(205)},
    "<|image token|>": 151_851,
    "<|image start|>": 151_852,
    "<|image end|>": END_OF_IMAGE,
}
RANKS = {bytes([byte]): byte for byte in range(256)} | {
    piece: 256 + place for place, piece in enumerate((b" a", b"pp", b"le", b" app", b" apple"))
}
VISION_TOKENIZER = "Emu3.5-VisionTokenizer"
MULTIPLIERS, CHANNELS, LATENT, EMBEDDING = [1, 1, 1, 1, 2], 32, 16, 8
WIDTHS = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,  # as published, the heads together are wider than a hidden state
    "max_position_embeddings": 9_216,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
CONFIG = {
    **WIDTHS,
    **{"architectures": ["Emu3ForCausalLM"], "model_type": "Emu3", "torch_dtype": "float32"},
    **{"attention_dropout": 0.1, "hidden_act": "silu", "initializer_range": 0.02},
    **{"bos_token_id": 151_849, "eos_token_id": 151_850, "pad_token_id": 151_643},
    **{"img_token_id": 151_851, "boi_token_id": 151_852, "eoi_token_id": END_OF_IMAGE},
    **{"eol_token_id": END_OF_ROW, "eof_token_id": 151_847, "image_area": 518_400},
    **{"rope_theta": 1_000_000.0, "rope_scaling": None, "use_cache": True, "pretraining_tp": 1},
}
"""``config.json``, with the fields of the authors' ``configuration_emu3.py``."""
TOKENIZER_CONFIG = {
    **{"architectures": ["Emu3p5VisionVQModel"], "model_type": "Emu3p5VisionVQ"},
    **{"codebook_size": CODES, "embed_dim": EMBEDDING, "z_channels": LATENT, "double_z": False},
    **{"in_channels": 3, "out_ch": 3, "ch": CHANNELS, "ch_mult": MULTIPLIERS, "dropout": 0.0},
    **{"num_res_blocks": 1, "attn_resolutions": [16], "resolution": 256},
}


def build_transformer() -> Any:
    """Transformers' Qwen3 of the checkpoint's shape, its weights random."""
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
    return Qwen3ForCausalLM(Qwen3Config(**WIDTHS, rope_parameters=rope)).eval()


def make_emu35(path: Path, *, side: int = 8) -> None:
    """Save a checkpoint that draws ``side`` x ``side`` tokens if nothing else is asked for."""
    torch.manual_seed(0)
    model = build_transformer()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(std=2.0 / weight.shape[1] ** 0.5)
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                weight.uniform_(0.5, 2.0)
        model.get_input_embeddings().weight.normal_()
    path.mkdir(exist_ok=True)
    save_file(model.state_dict(), path / "model.safetensors", {"format": "pt"})
    contents = {**CONFIG, "target_size": 16 * side}  # published ones are of 1024
    (path / "config.json").write_text(json.dumps(contents))
    save_text_side(path, RANKS, CODES)
    make_vision_tokenizer(path.parent / VISION_TOKENIZER)


def build_decoder() -> TamingDecoder:
    return TamingDecoder(CODES, EMBEDDING, LATENT, CHANNELS, MULTIPLIERS, attends=True)


def make_vision_tokenizer(path: Path) -> None:
    """Save the vision tokenizer, which has an encoder besides."""
    torch.manual_seed(1)
    decoder = build_decoder()
    with torch.no_grad():
        decoder.quantize["embedding"].weight.normal_()
        decoder.decoder["conv_out"].weight.mul_(0.3)  # most shades within [-1, 1]
    path.mkdir(exist_ok=True)
    tensors = {**decoder.state_dict(), "encoder.conv_in.weight": torch.zeros(CHANNELS, 3, 3, 3)}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(TOKENIZER_CONFIG))


def load_decoder(path: Path) -> TamingDecoder:
    """The pixel decoder of a checkpoint, to compare with."""
    decoder = build_decoder()
    tensors = load_file(path.parent / VISION_TOKENIZER / "model.safetensors")
    decoder.load_state_dict({n: t for n, t in tensors.items() if not n.startswith("encoder")})
    return decoder.eval()


def load_oracle(path: Path) -> Any:
    """Transformers' Qwen3 with a checkpoint's weights."""
    model = build_transformer()
    model.load_state_dict(load_file(path / "model.safetensors"))
    return model


class Emu35AsCausalModel:
    """Its modules as a causal model, whose logits are the visual tokens' alone."""

    def __init__(self, path: Path) -> None:
        self._whole = load_oracle(path)
        self.config = self._whole.config
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def set_attn_implementation(self, name: str) -> None:
        self._whole.set_attn_implementation(name)

    def get_decoder(self) -> Any:
        return self._whole.model

    def lm_head(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self._whole.lm_head.weight[FIRST_ID:])


@torch.no_grad()
def generate(model: Any, prompts: Any, rows: int, columns: int, guidance: float) -> list[int]:
    """The greedy picture in raster order, of transformers' Qwen3.

    As the authors constrain it, who guide log-probabilities of the whole vocabulary: visual tokens,
    the terminator at the end of all rows but the last, and there the end of the picture.
    """
    lanes = [prompts.conditional] if guidance == 1 else [prompts.conditional, prompts.unconditional]
    states = [SimpleNamespace(fed=torch.tensor([lane]), cache=None) for lane in lanes]
    picture: list[int] = []
    while len(picture) < rows * (columns + 1):
        scores = []
        for state in states:
            out = model(state.fed, past_key_values=state.cache, use_cache=True, logits_to_keep=1)
            state.cache = out.past_key_values
            scores.append(out.logits[0, -1].log_softmax(-1))
        guided = scores[-1] + guidance * (scores[0] - scores[-1])
        end = len(picture) + 1
        if end == rows * (columns + 1):
            token = END_OF_IMAGE
        elif end % (columns + 1) == 0:
            token = END_OF_ROW
        else:
            token = FIRST_ID + int(guided[FIRST_ID:].argmax())
        picture.append(token)
        for state in states:
            state.fed = torch.tensor([[token]])
    return picture
