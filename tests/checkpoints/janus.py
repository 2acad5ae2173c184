"""A small random Janus-Pro in transformers' layout: real vocabulary and special ids, small widths.

The special tokens of the 1B and of the 7B checkpoint have other ids; both are here.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from zipar_vllm.models.janus import BEGIN, BEGIN_OF_IMAGE, PAD

VOCABULARY, CODES = 102_400, 16_384
FIRST_OF_SIZE = {"1B": 100_002, "7B": 100_015}
"""Id of the padding token; those of images follow it at the same distance in both sizes."""


def special_ids(size: str) -> dict[str, int]:
    first = FIRST_OF_SIZE[size]
    return {
        BEGIN: 100_000,
        "<｜end▁of▁sentence｜>": 100_001,  # noqa: RUF001
        PAD: first,
        BEGIN_OF_IMAGE: first + 1,
        "<end_of_image>": first + 578,
        "<image_placeholder>": first + 579,
        "<|User|>": first + 586,
        "<|Assistant|>": first + 587,
    }


def make_tokenizer(size: str) -> Tokenizer:
    """Bytes and the special tokens."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    special = special_ids(size)
    tokenizer = Tokenizer(models.BPE(vocab={**letters, **special}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def make_config(size: str, side: int, published_pixels: bool) -> JanusConfig:
    hidden = 64
    small = {
        "latent_channels": 32,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1, 1, 1],
        "num_res_blocks": 1,
    }
    return JanusConfig(
        text_config=LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=16_384,
            bos_token_id=100_000,
            eos_token_id=100_001,
            pad_token_id=special_ids(size)[PAD],
        ),
        vision_config=JanusVisionConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16 * side,
            patch_size=16,
            projection_dim=hidden,
            num_image_tokens=side * side,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=CODES,
            projection_dim=hidden,
            image_token_embed_dim=hidden,
            **({} if published_pixels else small),
        ),
        image_token_id=special_ids(size)["<image_placeholder>"],
    )


def make_janus(
    path: Path,
    *,
    size: str = "1B",
    side: int = 8,
    shards: bool = False,
    published_pixels: bool = False,
) -> None:
    """Save a checkpoint of ``side`` x ``side`` tokens, whose greedy pictures are diverse.

    ``published_pixels``: with the VQ decoder's real widths, which the authors' layout cannot tell.
    """
    torch.manual_seed(0)
    model = JanusForConditionalGeneration(make_config(size, side, published_pixels)).eval()
    with torch.no_grad():
        for name, weight in model.model.named_parameters():
            if name.startswith(("language_model.layers", "generation_")) and weight.dim() == 2:
                weight.normal_(std=2.0 / weight.shape[1] ** 0.5)
        model.model.language_model.embed_tokens.weight.normal_()
        model.model.generation_embeddings.weight.normal_()
        model.model.vqmodel.quantize.embedding.weight.normal_()
    ids = special_ids(size)
    model.generation_config.update(
        bos_token_id=ids[BEGIN],
        eos_token_id=100_001,
        pad_token_id=ids[PAD],
        guidance_scale=5,
        temperature=1.0,
    )
    model.generation_config.generation_kwargs = {"boi_token_id": ids[BEGIN_OF_IMAGE]}
    model.save_pretrained(path, max_shard_size="20MB" if shards else "5GB")
    PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(size), bos_token=BEGIN, pad_token=PAD
    ).save_pretrained(path)


def load_oracle(path: Path, size: str = "1B") -> Any:
    """Transformers' own model, which can draw.

    Its ``generate`` reads a field that its own loading of ``generation_config.json`` drops.
    """
    model = JanusForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    ids = special_ids(size)
    model.generation_config.generation_kwargs = {"boi_token_id": ids[BEGIN_OF_IMAGE]}
    return model


class JanusAsCausalModel:
    """Transformers' modules put together as a causal model over text and image ids.

    The reference decoder calls it; :class:`TransformersModel` takes it apart.
    """

    def __init__(self, path: Path) -> None:
        self._parts = load_oracle(path).model
        self.config = self._parts.language_model.config
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.lm_head = self._parts.generation_head

    def set_attn_implementation(self, name: str) -> None:
        self._parts.language_model.set_attn_implementation(name)

    def get_decoder(self) -> Any:
        def decoder(input_ids: torch.Tensor, **inputs: Any) -> Any:
            return self._parts.language_model(inputs_embeds=self._embed(input_ids), **inputs)

        return decoder

    def __call__(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        output = self.get_decoder()(input_ids, **inputs)
        logits = self.lm_head(output.last_hidden_state)
        return SimpleNamespace(
            logits=torch.nn.functional.pad(logits, (VOCABULARY, 0)),
            past_key_values=output.past_key_values,
        )

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        text = self._parts.language_model.embed_tokens(ids.clamp(max=VOCABULARY - 1))
        features = self._parts.generation_embeddings((ids - VOCABULARY).clamp(min=0))
        image = self._parts.generation_aligner(features)
        return torch.where((ids < VOCABULARY).unsqueeze(-1), text, image)
