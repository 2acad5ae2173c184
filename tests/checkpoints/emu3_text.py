"""The tokenizer of Emu3's and Emu3.5's authors (their ``tokenization_emu3.py``): tiktoken's."""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import tiktoken

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def save_text_side(path: Path, ranks: Mapping[bytes, int], codes: int) -> None:
    """Save ``emu3.tiktoken`` and ``emu3_vision_tokens.txt``."""
    lines = [f"{base64.b64encode(piece).decode()} {rank}" for piece, rank in ranks.items()]
    (path / "emu3.tiktoken").write_text("\n".join(lines))
    names = ["<|image token|>", "<|image start|>", "<|image end|>"]
    names += [f"<|visual token {code:06d}|>" for code in range(codes)]
    (path / "emu3_vision_tokens.txt").write_text("\n".join(names) + "\n")


def encode(text: str, ranks: Mapping[bytes, int], special: Mapping[str, int]) -> list[int]:
    """A text's tokens; special ones are read as such."""
    encoding = tiktoken.Encoding(
        "emu3", pat_str=PATTERN, mergeable_ranks=dict(ranks), special_tokens=dict(special)
    )
    return encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all")
