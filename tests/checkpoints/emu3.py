"""A small random Emu3-Gen in transformers' layout: real vocabulary and ids, small widths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3TextConfig,
    Emu3VQVAEConfig,
    PreTrainedTokenizerFast,
)

VOCABULARY, CODES, FIRST_ID = 184_622, 32_768, 151_854
END_OF_ROW, END_OF_FRAME, END_OF_IMAGE, END = 151_846, 151_847, 151_853, 151_850
SPECIAL = {
    "<|endoftext|>": 151_643,
    "<image>": 151_646,
    "<|extra_200|>": END_OF_ROW,
    "<|extra_201|>": END_OF_FRAME,
    "<|extra_203|>": 151_849,
    "<|extra_204|>": END,
    "<|image token|>": 151_851,
    "<|image start|>": 151_852,
    "<|image end|>": END_OF_IMAGE,
}


def make_tokenizer() -> Tokenizer:
    """Bytes and the special tokens, the visual ones left out."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**letters, **SPECIAL}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return tokenizer


def make_emu3(path: Path, *, side: int = 8) -> None:
    """Save a checkpoint that draws ``side`` x ``side`` tokens if nothing else is asked for."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    visual = {f"<|visual token {code:06d}|>": FIRST_ID + code for code in range(CODES)}
    config = Emu3Config(
        text_config=Emu3TextConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        ),
        vq_config=Emu3VQVAEConfig(
            base_channels=32, channel_multiplier=[1, 1, 1, 1], num_res_blocks=1, hidden_size=32
        ),
        vocabulary_map={**tokenizer.get_vocab(), **visual},
    )
    model = Emu3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "vqmodel" not in name:
                weight.normal_(std=2.0 / weight.shape[1] ** 0.5)
        model.get_input_embeddings().weight.normal_()
        model.model.vqmodel.quantize.embedding.weight.normal_()
        model.model.vqmodel.decoder.conv_out.weight.mul_(0.2)  # most shades within [-1, 1]
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    contents = json.loads((path / "config.json").read_text())
    contents["image_area"] = (8 * side) ** 2  # stands in the authors' own layout
    (path / "config.json").write_text(json.dumps(contents))


def load_oracle(path: Path) -> Any:
    """Transformers' own model, which can draw."""
    return Emu3ForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()


class Emu3AsCausalModel:
    """Transformers' modules as a causal model, its logits the visual tokens' alone."""

    def __init__(self, path: Path) -> None:
        self._whole = load_oracle(path)
        self.config = self._whole.config.text_config
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def set_attn_implementation(self, name: str) -> None:
        self._whole.model.text_model.set_attn_implementation(name)

    def get_decoder(self) -> Any:
        return self._whole.model.text_model

    def lm_head(self, hidden: torch.Tensor) -> torch.Tensor:
        weight = self._whole.lm_head.weight[FIRST_ID : FIRST_ID + CODES]
        return torch.nn.functional.linear(hidden, weight)


def generate(model: Any, prompts: Any, rows: int, columns: int, guidance: float) -> list[int]:
    """The greedy picture of transformers' ``generate``: rows and their terminators.

    As the authors constrain it: visual tokens, the terminator at a row's end, then the end tokens.
    """
    start, picture = len(prompts.conditional), rows * (columns + 1)
    visual = list(range(FIRST_ID, FIRST_ID + CODES))

    def allowed(batch: int, ids: torch.Tensor) -> list[int]:
        position = len(ids) - start
        if position >= picture:
            return [[END_OF_FRAME, END_OF_IMAGE, END][position - picture]]
        return [END_OF_ROW] if position % (columns + 1) == columns else visual

    options: dict[str, Any] = {}
    if guidance != 1:
        negative = torch.tensor([prompts.unconditional])
        options = {
            "guidance_scale": guidance,
            "negative_prompt_ids": negative,
            "negative_prompt_attention_mask": torch.ones_like(negative),
        }
    ids = torch.tensor([prompts.conditional])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        prefix_allowed_tokens_fn=allowed,
        do_sample=False,
        max_new_tokens=picture + 3,
        **options,
    )
    tokens = output[0, start:].tolist()
    assert tokens[picture:] == [END_OF_FRAME, END_OF_IMAGE, END]
    return list(tokens[:picture])
