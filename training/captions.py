"""Captions and the text vocabulary."""

from __future__ import annotations

import random
import string
from collections.abc import Iterable

from training.concepts import ALIASES, STYLES

PAD, BOS, BOI, EOL, UNK = "<pad>", "<bos>", "<boi>", "<eol>", "<unk>"
SPECIAL: tuple[str, ...] = (PAD, BOS, BOI, EOL, UNK)
VOCABULARY_MULTIPLE = 64  # vLLM pads vocabularies to this

# Words around the concept that people write and that mean nothing here: training shows the
# model to ignore them.
FRAMES: tuple[str, ...] = (
    "a {}", "the {}", "{} emoji", "an emoji of a {}", "a picture of a {}", "a drawing of a {}",
    "a photo of a {}", "an image of a {}", "icon of a {}", "a cute {}", "a small {}", "one {}",
    "please draw a {}", "a nice {} on a plain background", "{} illustration",
)  # fmt: skip
STYLE_FRAMES: tuple[str, ...] = ("{style} {name}", "{name}, {style}", "{name} in {style} style")


JUNK: tuple[str, ...] = (
    "!", ".", "?", "beautiful", "big", "high quality", "detailed", "on a table", "in the sun",
    "with a friend", "4k", "cartoon", "colourful", "simple", "flat", "happy", "old", "new",
)  # fmt: skip


def with_junk(name: str, rng: random.Random) -> str:
    """Add what the model should not mind: a plural, a filler, letters that mean nothing."""
    kind = rng.randrange(4)
    if kind == 0:
        return name + "s"
    noise = "".join(rng.choices(string.ascii_lowercase + string.digits, k=rng.randint(1, 6)))
    extra = noise if kind == 1 else rng.choice(JUNK)
    return f"{extra} {name}" if rng.random() < 0.3 else f"{name} {extra}"


def caption(concept: str, style: str, rng: random.Random) -> str:
    """One way of asking for a picture; empty in a tenth of the cases, for guidance."""
    if rng.random() < 0.1:
        return ""
    name = concept
    aliases = ALIASES.get(concept, ())
    if aliases and rng.random() < 0.15:
        name = rng.choice(aliases)
    if rng.random() < 0.1:
        name = rng.choice(FRAMES).format(name)
    if rng.random() < 0.06:
        name = with_junk(name, rng)
    if rng.random() < 0.25:
        return name
    frame = STYLE_FRAMES[0] if rng.random() < 0.6 else rng.choice(STYLE_FRAMES)
    return frame.format(style=style, name=name)


def words(concepts: Iterable[str]) -> list[str]:
    """Every word a caption can hold, sorted."""
    texts = [*concepts, *STYLES, *FRAMES, *STYLE_FRAMES]
    texts += [alias for names in ALIASES.values() for alias in names]
    cleaned = " ".join(texts).lower().replace("{style}", " ").replace("{name}", " ")
    kept = "".join(c if c.isalnum() else " " for c in cleaned)
    return sorted(set(kept.split()))


def text_vocabulary(concepts: Iterable[str]) -> list[str]:
    """Special tokens, words, then characters, padded so that image tokens start on a multiple."""
    letters = string.ascii_lowercase + string.digits
    entries = [*SPECIAL, *words(concepts), *string.punctuation, *letters]
    entries += [f"##{c}" for c in letters]
    entries = list(dict.fromkeys(entries))
    short = -len(entries) % VOCABULARY_MULTIPLE
    return entries + [f"<unused{k}>" for k in range(short)]


def build_tokenizer(concepts: Iterable[str], codes: int) -> object:
    """A ``tokenizers.Tokenizer``: whole words, else pieces and characters, else ``<unk>``.

    The image tokens are in the vocabulary, as ``<image0>`` and so on, because Hugging Face's
    loaders and vLLM expect a name for every id; no text encodes to them.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece

    entries = text_vocabulary(concepts)
    vocabulary = {entry: k for k, entry in enumerate(entries)}
    start = len(entries)
    total = start + codes + (-(start + codes)) % VOCABULARY_MULTIPLE
    for k in range(start, total):
        vocabulary[f"<image{k - start}>"] = k
    model = WordPiece(vocabulary, unk_token=UNK, max_input_chars_per_word=64)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer
