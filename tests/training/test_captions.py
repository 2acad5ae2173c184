"""Captions and the text tokenizer."""

from __future__ import annotations

import random

import pytest

from training.captions import VOCABULARY_MULTIPLE, build_tokenizer, caption, text_vocabulary
from training.concepts import ALIASES, FLAGS, HELD_OUT, NAMED, RENAMED, STYLES

CONCEPTS = sorted({*NAMED, *RENAMED, *(f"flag of {c}" for c in FLAGS)})
GATE = ("red apple", "cat face", "red car", "pizza", "sunflower", "house", "panda", "flag of Japan")


def test_the_gate_prompts_are_concepts_in_all_styles() -> None:
    assert set(GATE) <= set(CONCEPTS)
    assert not {concept for _, concept in HELD_OUT} & set(GATE)


def test_aliases_name_one_concept_each() -> None:
    names = [name for other in ALIASES.values() for name in other]
    assert len(names) == len(set(names))
    assert not set(names) & set(CONCEPTS)
    assert set(ALIASES) <= set(CONCEPTS)


def test_a_tenth_of_the_captions_is_empty_and_a_quarter_names_no_style() -> None:
    rng = random.Random(0)
    texts = [caption("panda", "twemoji", rng) for _ in range(3000)]
    assert 0.08 < texts.count("") / 3000 < 0.12
    assert 0.18 < sum("twemoji" not in t for t in texts if t) / 3000 < 0.27


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Twemoji RED apple!", ["twemoji", "red", "apple", "!"]),
        ("cats", ["cat", "##s"]),
        ("zq", ["z", "##q"]),
        ("猫 🐱", ["<unk>", "<unk>"]),
        ("<bos>", ["<", "b", "##o", "##s", ">"]),
        ("", []),
    ],
)
def test_any_text_encodes(text: str, pieces: list[str]) -> None:
    tokenizer = build_tokenizer(CONCEPTS, codes=1000)
    assert tokenizer.encode(text).tokens == pieces


def test_image_tokens_follow_the_text_on_a_round_number() -> None:
    text = text_vocabulary(CONCEPTS)
    tokenizer = build_tokenizer(CONCEPTS, codes=1000)
    assert len(text) == len(set(text))
    assert len(text) % VOCABULARY_MULTIPLE == 0
    assert tokenizer.get_vocab_size() % VOCABULARY_MULTIPLE == 0
    assert tokenizer.token_to_id("<image0>") == len(text)
    assert tokenizer.get_vocab_size() >= len(text) + 1000


def test_both_styles_are_words() -> None:
    assert set(STYLES) <= set(text_vocabulary(CONCEPTS))
