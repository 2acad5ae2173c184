"""What Emu3 and Emu3.5 share: names of tokens, the authors' tokenizer, where the VQ model is.

Source: ``tokenization_emu3.py`` of github.com/baaivision/Emu3 and github.com/baaivision/Emu3.5.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from zipar_vllm.core.grid import Grid

from .checkpoint import Checkpoint

BEGIN, BEGIN_OF_IMAGE, IMAGE = "<|extra_203|>", "<|image start|>", "<|image token|>"
ROW_TERMINATOR = "<|extra_200|>"
VISUAL = "<|visual token {code:06d}|>"

EMU3_VOCABULARY = 184_622
"""What tells an Emu3 in its authors' layout from an Emu3.5, which names the same architecture."""

RANKS, VISION_TOKENS = "emu3.tiktoken", "emu3_vision_tokens.txt"
FIRST_SPECIAL_ID = 151_643
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
"""The special tokens before those of the vision tokens' file."""


def begin_picture(grid: Grid) -> str:
    """What stands before a picture's first token, and tells its size."""
    return f"{BEGIN_OF_IMAGE}{grid.rows}*{grid.columns}{IMAGE}"


def special_ids(checkpoint: Checkpoint) -> dict[str, int]:
    """Id by special token, of the authors' layout.

    Raises:
        UnusableModelError: the vision tokens' file is missing.
    """
    lines = checkpoint.file(VISION_TOKENS).read_text().splitlines()
    tokens = (*SPECIAL, *(line.strip() for line in lines if line.strip()))
    return {token: FIRST_SPECIAL_ID + place for place, token in enumerate(tokens)}


def read_tokenizer(checkpoint: Checkpoint, ids: dict[str, int]) -> Tokenizer:
    """The authors' tokenizer, which splits texts as Qwen's, in the ``tokenizers`` package.

    Visual tokens are left out: no prompt has any.

    Args:
        checkpoint: In the authors' layout.
        ids: Of :func:`special_ids`.

    Raises:
        UnusableModelError: the ranks' file is missing.
    """
    converter = TikTokenConverter()
    vocabulary, merges = converter.extract_vocab_merges_from_model(str(checkpoint.file(RANKS)))
    special = {token: number for token, number in ids.items() if "visual token" not in token}
    tokenizer = Tokenizer(models.BPE({**vocabulary, **special}, merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return tokenizer


def vision_tokenizer(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The VQ model, a checkpoint of its own: the folder beside a transformer's, else on the hub."""
    beside = Path(checkpoint.model).resolve().parent / name
    found = Checkpoint(beside if beside.is_dir() else f"BAAI/{name}")
    found.findings = checkpoint.findings
    return found
