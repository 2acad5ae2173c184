"""Draws sample sheets of a checkpoint: a column per prompt, a row per window and seed.

The checkpoint is exported and decoded by the engine itself, so the sheet shows what will be served.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from training.concepts import STYLES
from training.export import DEFAULTS, export
from training.masks import COLUMNS
from zipar_vllm import ImageLLM

FIXED_PROMPTS: tuple[str, ...] = tuple(
    f"{style} {concept}"
    for style in STYLES
    for concept in (
        "red apple", "cat face", "red car", "pizza", "sunflower", "house", "panda", "flag of Japan"
    )
)  # fmt: skip
GAP = 2


def draw_sheet(
    model: Path,
    prompts: Sequence[str],
    rows: Sequence[tuple[int, int]],
    side: int,
    **options: float,
) -> Image.Image:
    """A row of pictures for each window and seed; every picture ``side`` pixels wide."""
    sheet = Image.new("RGB", (len(prompts) * (side + GAP), len(rows) * (side + GAP)), "white")
    with ImageLLM(model) as llm:
        for y, (window, seed) in enumerate(rows):
            results = llm.generate(prompts, window=window, seed=[seed] * len(prompts), **options)
            for x, result in enumerate(results):
                tile = result.image.resize((side, side), Image.Resampling.LANCZOS)
                sheet.paste(tile, (x * (side + GAP), y * (side + GAP)))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--prompt", action="append", help="instead of the fixed ones; repeatable")
    parser.add_argument("--window", type=int, action="append", help="repeatable; default 24, 8, 4")
    parser.add_argument("--seed", type=int, action="append", help="repeatable; default 0")
    parser.add_argument("--guidance", type=float, default=DEFAULTS["guidance_scale"])
    parser.add_argument("--temperature", type=float, default=DEFAULTS["temperature"])
    parser.add_argument("--top-k", type=int, default=DEFAULTS["top_k"])
    parser.add_argument("--side", type=int, default=96, help="pixels per picture")
    given = parser.parse_args()
    rows = [
        (window, seed) for window in given.window or (COLUMNS, 8, 4) for seed in given.seed or (0,)
    ]
    with tempfile.TemporaryDirectory() as folder:
        export(given.work, Path(folder))
        sheet = draw_sheet(
            Path(folder),
            given.prompt or FIXED_PROMPTS,
            rows,
            given.side,
            guidance_scale=given.guidance,
            temperature=given.temperature,
            top_k=given.top_k,
        )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(given.output)


if __name__ == "__main__":
    main()
