"""Draws sample sheets: a column per prompt, a row per window, or per seed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from training.captions import build_tokenizer
from training.concepts import STYLES, all_concepts
from training.decoder import load_decoder
from training.export import DEFAULTS
from training.masks import COLUMNS
from training.run import build_layout
from training.sample import Sampling, draw, save_grid
from zipar_vllm.models.fsq import FSQAutoencoder

FIXED_PROMPTS: tuple[str, ...] = tuple(
    f"{style} {concept}"
    for style in STYLES
    for concept in (
        "red apple", "cat face", "red car", "pizza", "sunflower", "house", "panda", "flag of Japan"
    )
)  # fmt: skip


def draw_sheet(
    work: Path, prompts: Sequence[str], options: Sequence[Sampling], output: Path, side: int = 96
) -> None:
    """One row of pictures for each of ``options``."""
    model, _ = load_decoder(work / "decoder.pt")
    autoencoder = FSQAutoencoder.from_pretrained(work / "vq")
    concepts = all_concepts()
    tokenizer: Any = build_tokenizer(concepts, autoencoder.quantizer.num_codes)
    texts = [tokenizer.encode(prompt).ids for prompt in prompts]
    layout = build_layout(concepts)
    rows = [draw(model, autoencoder, texts, layout, option) for option in options]
    save_grid(torch.cat(rows), len(prompts), output, side)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--prompt", action="append", help="instead of the fixed ones; repeatable")
    parser.add_argument("--window", type=int, action="append", help="repeatable; default 24, 8, 4")
    parser.add_argument("--seed", type=int, action="append", help="repeatable; default 0")
    parser.add_argument("--guidance", type=float, default=DEFAULTS["guidance_scale"])
    parser.add_argument("--temperature", type=float, default=DEFAULTS["temperature"])
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--side", type=int, default=96, help="pixels a picture")
    given = parser.parse_args()
    options = [
        Sampling(window, given.guidance, given.temperature, given.top_k, seed)
        for window in given.window or (COLUMNS, 8, 4)
        for seed in given.seed or (0,)
    ]
    draw_sheet(given.work, given.prompt or FIXED_PROMPTS, options, given.output, given.side)


if __name__ == "__main__":
    main()
