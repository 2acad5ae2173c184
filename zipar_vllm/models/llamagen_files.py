"""LlamaGen's published ``.pt`` files, made into a checkpoint folder that vLLM can load.

Source of the files' contents: github.com/FoundationVision/LlamaGen,
``autoregressive/models/gpt.py`` and ``tokenizer/tokenizer_image/vq_model.py``. The folder has

* ``config.json``: a Llama's, and beside it ``num_codes``, ``num_classes``, ``id2label`` (the names
  of the classes), ``grid_side`` (rows of the picture, and columns) and ``condition_length``
  (positions before the picture);
* ``model.safetensors``: named as Llama's. The embedding table has the codes, then the classes, then
  the class that stands for none; the head has the codes alone;
* ``caption/``, of a model of texts alone: what makes embeddings of a text encoder's features, and
  the features that stand for no text; ``caption_encoder`` in ``config.json`` says whose they are;
* ``vq/``: the pixel decoder, configured and named as transformers' ``JanusVQVAE``, which has the
  same architecture; the encoder is left out.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from zipar_vllm.errors import UnusableModelError

from . import janus_original
from .checkpoint import CONFIG, WEIGHTS
from .llamagen import PIXELS
from .llamagen_text import CAPTIONS

UNCONDITIONAL = "cls_embedding.uncond_embedding"
"""Tensor that only a model of texts has."""

HEADS = {
    (12, 768): 12,
    (24, 1024): 16,
    (36, 1280): 20,
    (48, 1536): 24,
    (24, 3200): 32,
}
"""Attention heads of the published models by their layers and width: the files do not tell."""

WRAPPERS = ("model", "module", "state_dict")
"""Keys that hold the tensors, by what a file was saved with; FSDP saves them bare."""

TEXT_ENCODER = "google/flan-t5-xl"
"""The authors'."""

LAYER = {
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "ffn_norm": "post_attention_layernorm",
}
"""Names within a layer, and Llama's."""


class _PublishedFile:
    """The tensors of a ``.pt`` file, left on the disk until they are used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise self.error("there is no such file")
        try:
            # Training saves its options, which are a Namespace, beside the tensors.
            with torch.serialization.safe_globals([argparse.Namespace]):
                contents = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # there is no telling what unpickling any bytes raises
            raise self.error(f"torch cannot read it ({type(error).__name__})") from None
        if isinstance(contents, Mapping):
            contents = next((contents[key] for key in WRAPPERS if key in contents), contents)
        if not isinstance(contents, Mapping):
            raise self.error("it is no file of named tensors")
        self.tensors: Mapping[str, torch.Tensor] = contents

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.tensors:
            raise self.error(f"tensor {name} is missing")
        return self.tensors[name]

    def count(self, prefix: str) -> int:
        """How many modules of a list there are, by the numbers behind ``prefix``."""
        numbers = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in self.tensors)
        return len({found[1] for found in numbers if found})

    def error(self, problem: str) -> UnusableModelError:
        return UnusableModelError(f"{self.path}: {problem}")


def convert(
    transformer: Path,
    pixels: Path,
    output: Path,
    *,
    image_size: int | None = None,
    heads: int | None = None,
    text_encoder: str = TEXT_ENCODER,
) -> None:
    """Write the checkpoint folder of a transformer and a pixel decoder.

    Args:
        transformer: Such as ``c2i_B_384.pt``.
        pixels: Such as ``vq_ds16_c2i.pt``.
        output: A folder that does not exist yet.
        image_size: Pixels of the picture's side; None takes them from the transformer's name.
        heads: Attention heads; None for a published model.
        text_encoder: Folder or hub id of the T5 whose features a model of texts reads.

    Raises:
        UnusableModelError: a file is not what it should be, or does not tell what is left open.
        FileExistsError: there is such a folder.
    """
    source, decoder = _PublishedFile(transformer), _PublishedFile(pixels)
    levels = decoder.count("decoder.conv_blocks")
    if not levels:
        raise decoder.error("it is no pixel decoder of LlamaGen: it has no decoder.conv_blocks")
    side = _side(source, image_size, 2 ** (levels - 1))
    config, tensors = _transformer(source, side, heads)
    vq_config, vq_tensors = _pixel_decoder(decoder, levels)
    if vq_config["num_embeddings"] != config["num_codes"]:
        raise decoder.error(
            f"it has {vq_config['num_embeddings']} codes, the transformer {config['num_codes']}"
        )
    if UNCONDITIONAL in source.tensors:
        config["caption_encoder"] = text_encoder  # vLLM takes a text_encoder for the model itself
    _write(output, tensors, config)
    _write(output / PIXELS, vq_tensors, vq_config)
    if UNCONDITIONAL in source.tensors:
        _write(output / CAPTIONS, _captions(source))


def class_names() -> list[str]:
    """The names of ImageNet's 1000 classes, those of one class separated by commas."""
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def _side(source: _PublishedFile, image_size: int | None, factor: int) -> int:
    """Rows of the picture, and columns."""
    if image_size is None:
        told = re.search(r"_(\d{3,4})$", source.path.stem)
        if told is None:
            raise source.error("its name ends in no picture size as c2i_B_384.pt does: give one")
        image_size = int(told[1])
    if image_size < factor or image_size % factor:
        raise source.error(f"image size {image_size} is no multiple of {factor} pixels per token")
    return image_size // factor


def _transformer(
    source: _PublishedFile, side: int, heads: int | None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and tensors of the transformer."""
    codes = source["tok_embeddings.weight"]
    # A model of texts reads embeddings, and has none of its own for them.
    of_text = UNCONDITIONAL in source.tensors
    classes = codes[:0] if of_text else source["cls_embedding.embedding_table.weight"]
    condition_length = len(source[UNCONDITIONAL]) if of_text else 1
    (num_codes, width), layers = codes.shape, source.count("layers")
    heads = heads or HEADS.get((layers, width))
    if heads is None:
        raise source.error(f"no published model has {layers} layers of {width}: give its heads")
    size = width // heads
    if width % heads or size % 4:
        raise source.error(f"{heads} heads cannot share its width of {width}, in multiples of 4")
    tensors = {
        "model.embed_tokens.weight": torch.cat([codes, classes]),
        "model.norm.weight": source["norm.weight"],
        "lm_head.weight": source["output.weight"],
    }
    for number in range(layers):
        old, new = f"layers.{number}", f"model.layers.{number}"
        fused = source[f"{old}.attention.wqkv.weight"]
        key_values = (len(fused) - width) // 2
        parts = fused[:width], fused[width:-key_values], fused[-key_values:]
        for name, part in zip("qkv", parts, strict=True):
            tensors[f"{new}.self_attn.{name}_proj.weight"] = part
        for theirs, ours in LAYER.items():
            tensors[f"{new}.{ours}.weight"] = source[f"{old}.{theirs}.weight"]
    num_classes = max(len(classes) - 1, 0)
    names = class_names()
    config = {
        "architectures": ["LlamaGenForTextToImage" if of_text else "LlamaGenForImageGeneration"],
        "model_type": "llama",
        "dtype": str(codes.dtype).removeprefix("torch."),
        "vocab_size": num_codes + len(classes),
        "hidden_size": width,
        "intermediate_size": len(source["layers.0.feed_forward.w1.weight"]),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_values // size,
        "head_dim": size,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        # Of one request: the prompts of both lanes, and the picture.
        "max_position_embeddings": 2 * condition_length + side * side,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "num_codes": num_codes,
        "num_classes": num_classes,
        "id2label": dict(enumerate(names)) if num_classes == len(names) else {},
        "grid_side": side,
        "condition_length": condition_length,
    }
    return config, tensors


def _pixel_decoder(
    source: _PublishedFile, levels: int
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and tensors of the pixel decoder."""
    codebook, latent = source["quantize.embedding.weight"], source["post_quant_conv.weight"]
    base = source["decoder.conv_out.weight"].shape[1]
    widths = [
        len(source[f"decoder.conv_blocks.{level}.res.0.conv1.weight"]) for level in range(levels)
    ]
    config = {
        "architectures": ["JanusVQVAE"],
        "model_type": "janus_vqgan",
        "dtype": str(codebook.dtype).removeprefix("torch."),
        "num_embeddings": codebook.shape[0],
        "embed_dim": codebook.shape[1],
        "latent_channels": latent.shape[0],
        "base_channels": base,
        "channel_multiplier": [width // base for width in reversed(widths)],
        "num_res_blocks": source.count("decoder.conv_blocks.0.res") - 1,
    }
    # Janus's authors took this decoder, encoder and all, and put a prefix before its names.
    as_in_janus = {janus_original.PIXELS + name: source[name] for name in source.tensors}
    tensors = {
        name.removeprefix("model.vqmodel."): tensor
        for name, tensor in janus_original.renamed(as_in_janus)
    }
    return config, tensors


def _captions(source: _PublishedFile) -> dict[str, torch.Tensor]:
    """From a text encoder's features to the transformer's embeddings; features of no text."""
    layers = {
        f"{layer}.weight": source[f"cls_embedding.cap_proj.{layer}.weight"]
        for layer in ("fc1", "fc2")
    }
    return {**layers, "unconditional": source[UNCONDITIONAL]}


def _write(
    folder: Path, tensors: dict[str, torch.Tensor], config: Mapping[str, Any] | None = None
) -> None:
    folder.mkdir(parents=True)
    if config is not None:
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
