"""Emu3-Gen in the authors' own layout, ``BAAI/Emu3-Gen``, made transformers'.

It is two checkpoints: the transformer, and the VQ model, ``BAAI/Emu3-VisionTokenizer``, which is
taken from the folder beside it or from the hub; what only reads images is left out. Names,
configurations and tokenizer are those of the authors' ``emu3/mllm`` and ``emu3/tokenizer``
(github.com/baaivision/Emu3).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import Emu3Config, Emu3TextConfig, Emu3VQVAEConfig, PreTrainedTokenizerFast

from .checkpoint import Checkpoint
from .emu3 import PIXELS
from .emu3_tokens import BEGIN, EMU3_VOCABULARY, read_tokenizer, special_ids, vision_tokenizer
from .shards import save_shards

VISION_TOKENIZER = "Emu3-VisionTokenizer"
READ_IMAGE = {"<image>": 151_646}
"""Transformers' own name for one of them; nothing here uses it."""

TEXT_RENAMES = {r"model\.": "text_model.model.", r"lm_head\.": "text_model.lm_head."}
_MIDDLE, _UP = r"decoder\.mid\.", r"decoder\.up\.(\d+)\."
VQ_RENAMES = {
    rf"{_MIDDLE}attn_1\.norm\.": "decoder.middle_block.attn_norm.",
    rf"{_MIDDLE}attn_1\.proj_out\.": "decoder.middle_block.attn_1.out_proj.",
    rf"{_MIDDLE}attn_1\.([qkv])\.": r"decoder.middle_block.attn_1.\1_proj.",
    _MIDDLE: "decoder.middle_block.",
    rf"{_UP}attn\.(\d+)\.norm\.": r"decoder.up_block.up.\1.attn_norms.\2.",
    rf"{_UP}attn\.(\d+)\.proj_out\.": r"decoder.up_block.up.\1.attn.\2.out_proj.",
    rf"{_UP}attn\.(\d+)\.([qkv])\.": r"decoder.up_block.up.\1.attn.\2.\3_proj.",
    _UP: r"decoder.up_block.up.\1.",
    r"(decoder|post_quant_conv|quantize)\.": r"\1.",
}
"""Beginnings of the tensors' names that are needed, in order, and what they become."""


def convert(source: Checkpoint, target: Path) -> None:
    """Write both checkpoints as one in transformers' layout.

    Args:
        source: The authors' transformer.
        target: An empty folder.

    Raises:
        UnusableModelError: a file or a setting is missing, or it is an Emu3.5.
    """
    size = source.config.get("vocab_size", EMU3_VOCABULARY)
    if size != EMU3_VOCABULARY:
        raise source.error(
            f"config.json: vocab_size is {size}, that of an Emu3 is {EMU3_VOCABULARY}",
            "serve it as it is, if it is an Emu3.5",
        )
    vision = vision_tokenizer(source, VISION_TOKENIZER)
    ids = special_ids(source)
    config = _config(source, vision, ids)
    PreTrainedTokenizerFast(
        tokenizer_object=read_tokenizer(source, ids),
        bos_token=BEGIN,
        eos_token="<|extra_204|>",
        pad_token="<|endoftext|>",
    ).save_pretrained(target)
    config.save_pretrained(target)
    text = [partial(_renamed, file, TEXT_RENAMES) for file in source.files()]
    save_shards(target, [*text, *(partial(_decoder, file) for file in vision.files())])


def _renamed(file: Path, renames: dict[str, str]) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(file, framework="pt") as shard:
        for name in shard.keys():  # noqa: SIM118 (not a mapping)
            for pattern, new in renames.items():
                if re.match(pattern, name):
                    yield re.sub(f"^{pattern}", new, name), shard.get_tensor(name)
                    break


def _decoder(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """What draws; attention's convolutions of one pixel are matrices in transformers."""
    for name, tensor in _renamed(file, VQ_RENAMES):
        yield PIXELS + name, tensor[..., 0, 0] if name.endswith("_proj.weight") else tensor


def _config(source: Checkpoint, vision: Checkpoint, ids: dict[str, int]) -> Any:
    """The configuration in transformers' terms."""
    text, vq = source.config, vision.config
    if text.get("rope_scaling"):
        raise source.error("config.json: rope_scaling is not supported")
    names = Emu3TextConfig.__dataclass_fields__.keys() & text.keys()
    rope = {"rope_type": "default", "rope_theta": text.get("rope_theta", 1e6)}
    try:
        config = Emu3Config(
            text_config=Emu3TextConfig(
                **{name: text[name] for name in names}, rope_parameters=rope
            ),
            vq_config=Emu3VQVAEConfig(
                codebook_size=vq["codebook_size"],
                embed_dim=vq["embed_dim"],
                latent_channels=vq["z_channels"],
                out_channels=vq["out_channels"],
                temporal_downsample_factor=vq["temporal_downsample_factor"],
                base_channels=vq["ch"],
                channel_multiplier=vq["ch_mult"],
                num_res_blocks=vq["num_res_blocks"],
                attn_resolutions=vq["attn_resolutions"],
                hidden_size=vq["ch"] * vq["ch_mult"][-1],
            ),
            vocabulary_map=ids | READ_IMAGE,
            dtype=text.get("torch_dtype", "bfloat16"),
        )
        config.image_area = text["image_area"]
    except KeyError as error:
        raise source.error(
            f"config.json, its own or that of {vision.model}, has no {error}"
        ) from None
    config.architectures = ["Emu3ForConditionalGeneration"]
    return config
