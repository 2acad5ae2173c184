"""A small random Lumina-mGPT as the authors publish it: real vocabulary and ids, small widths.

Beside it stands Chameleon's VQGAN in Meta's files.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    PreTrainedTokenizerFast,
)

from .taming import TamingDecoder

VOCABULARY, CODES, FIRST_ID = 65_536, 8_192, 4
BEGIN_OF_IMAGE, END_OF_ROW, SIDE_ZERO, END_OF_TURN = 8_197, 8_803, 8_804, 8_710
FIRST_LETTER = 16_384
SPECIAL = {
    "<s>": 0,
    "<pad>": 1,
    "</s>": 2,
    "<unk>": 3,
    "<eoss>": 8_196,
    "<racm3:break>": BEGIN_OF_IMAGE,
    **{f"<reserved{number:05d}>": number + 4 for number in range(8_706, 8_900)},
}
IMAGE = {
    "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z": FIRST_ID + code
    for code in range(CODES)
}
MULTIPLIER, CHANNELS, LATENT, EMBEDDING = [1, 1, 1, 1, 2], 32, 32, 8


def make_tokenizer() -> Tokenizer:
    """Bytes and the special tokens, the image's left out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = {letter: FIRST_LETTER + i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab={**letters, **SPECIAL}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def build_vqgan() -> TamingDecoder:
    """Chameleon's, which attends in the middle alone."""
    return TamingDecoder(CODES, EMBEDDING, LATENT, CHANNELS, MULTIPLIER)


def make_vqgan(path: Path) -> None:
    """Save ``vqgan.yaml`` and ``vqgan.ckpt``, which holds an encoder and more besides."""
    torch.manual_seed(1)
    vqgan = build_vqgan()
    with torch.no_grad():
        vqgan.quantize["embedding"].weight.normal_()
        vqgan.decoder["conv_out"].weight.mul_(0.3)  # most shades within [-1, 1]
    path.mkdir()
    state = {**vqgan.state_dict(), "encoder.conv_in.weight": torch.zeros(CHANNELS, 3, 3, 3)}
    torch.save({"state_dict": state}, path / "vqgan.ckpt")
    layers = {
        "double_z": False,
        "z_channels": LATENT,
        "resolution": 512,
        "in_channels": 3,
        "out_ch": 3,
        "ch": CHANNELS,
        "ch_mult": MULTIPLIER,
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"embed_dim": EMBEDDING, "n_embed": CODES, "ddconfig": layers, "lossconfig": {}}
    (path / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))


def load_vqgan(path: Path) -> TamingDecoder:
    """The decoder of a checkpoint, to compare with."""
    vqgan = build_vqgan()
    state = torch.load(path / "original_tokenizers" / "vqgan.ckpt", weights_only=True)
    vqgan.load_state_dict({n: t for n, t in state["state_dict"].items() if "encoder" not in n})
    return vqgan.eval()


def make_lumina(path: Path, *, side: int = 8) -> None:
    """Save a checkpoint that draws ``side`` x ``side`` tokens if nothing else is asked for."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = ChameleonConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocabulary_map={**tokenizer.get_vocab(), **IMAGE},
        vq_config=ChameleonVQVAEConfig(
            base_channels=32, num_res_blocks=1, embed_dim=EMBEDDING, latent_channels=32
        ),
    )
    model = ChameleonForConditionalGeneration(config)
    tensors = {n: t for n, t in model.state_dict().items() if not n.startswith("model.vqmodel.")}
    for name, tensor in tensors.items():
        if name.endswith(("_norm.weight", "_norm.bias")):
            tensors[name] = torch.randn(1, tensor.shape[-1])  # for all heads, as published
        elif tensor.dim() == 2:
            scale = 1.0 if "embed_tokens" in name else 2.0 / tensor.shape[1] ** 0.5
            tensors[name] = torch.randn(tensor.shape) * scale
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    contents = {
        **config.to_diff_dict(),
        "architectures": ["ChameleonXLLMXForConditionalGeneration"],
        "target_size": 16 * side,  # the published ones tell it by their names
    }
    (path / "config.json").write_text(json.dumps(contents))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(path)
    make_vqgan(path / "original_tokenizers")


class LuminaAsCausalModel:
    """Transformers' Chameleon, whose own logits hide the image tokens.

    The reference decoder calls it; :class:`TransformersModel` takes it apart.
    """

    def __init__(self, path: Path) -> None:
        self.config = ChameleonConfig.from_pretrained(path)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self._whole = ChameleonForConditionalGeneration(self.config).eval()
        shapes = {name: tensor.shape for name, tensor in self._whole.state_dict().items()}
        tensors = {
            name: tensor.expand(shapes[name])  # norms of all heads
            for name, tensor in load_file(path / "model.safetensors").items()
        }
        missing, unexpected = self._whole.load_state_dict(tensors, strict=False)
        assert not unexpected
        assert all(name.startswith("model.vqmodel.") for name in missing)

    def set_attn_implementation(self, name: str) -> None:
        self._whole.set_attn_implementation(name)

    def get_decoder(self) -> Any:
        return self._whole.model

    def lm_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the image tokens alone."""
        weight = self._whole.lm_head.weight[FIRST_ID : FIRST_ID + CODES]
        return nn.functional.linear(hidden, weight)

    def __call__(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        output = self._whole.model(input_ids=input_ids, **inputs)
        logits = self._whole.lm_head(output.last_hidden_state)
        return SimpleNamespace(logits=logits, past_key_values=output.past_key_values)


@torch.no_grad()
def generate(model: Any, prompts: Any, rows: int, columns: int, guidance: float) -> list[int]:
    """The greedy picture in raster order, each token from its whole lane.

    As the authors constrain it: image tokens alone, and the terminator at a row's end.
    """
    lanes = [prompts.conditional] if guidance == 1 else [prompts.conditional, prompts.unconditional]
    picture: list[int] = []
    for position in range(rows * (columns + 1)):
        if position % (columns + 1) == columns:
            picture.append(END_OF_ROW)
            continue
        logits = [model(torch.tensor([lane + picture])).logits[0, -1] for lane in lanes]
        scores = logits[0]
        if guidance != 1:
            scores = guidance * (logits[0] - logits[1]) + logits[1]
        picture.append(FIRST_ID + int(scores[FIRST_ID : FIRST_ID + CODES].argmax()))
    return picture
