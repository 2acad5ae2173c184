"""Draw the README's picture: the same prompts and seeds in raster order and under windows 8 and 4.

python -m benchmarks.pictures --output docs/pictures.png

``--concepts`` draws everything the model knows instead, at its default window; ``--variety 10``
counts how many different pictures ten seeds give of each.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from zipar_vllm import ImageLLM

PROMPTS = (
    "red apple",
    "cat face",
    "red car",
    "pizza",
    "sunflower",
    "house",
    "panda",
    "flag of Japan",
)
WINDOWS = (24, 8, 4)
TILE, GAP, LABEL, CAPTION = 128, 4, 170, 24
PER_ROW = 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/pictures.png"))
    parser.add_argument("--style", default="", help="style word put before every prompt")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--concepts", action="store_true", help="all it knows, at its default window, untimed"
    )
    parser.add_argument("--variety", type=int, metavar="SEEDS", help="count, draw nothing")
    options = parser.parse_args()
    with ImageLLM() as llm:
        if options.variety:
            count_variety(llm, options.seed, options.variety)
            return
        sheet = draw_concepts(llm, options) if options.concepts else draw_windows(llm, options)
    sheet.save(options.output)


def count_variety(llm: ImageLLM, first_seed: int, seeds: int) -> None:
    """Print how many of each concept's pictures differ, at the model's defaults."""
    names: list[str] = list(llm.model.spec.details["concepts"])  # type: ignore[call-overload]
    each = range(first_seed, first_seed + seeds)
    results = llm.generate(
        [name for name in names for _ in each], seed=[seed for _ in names for seed in each]
    )
    different = {
        name: len({tuple(result.tokens) for result in results if result.prompt == name})
        for name in names
    }
    few = [f"{name} {count}" for name, count in different.items() if count < seeds - 1]
    print(
        f"{len(names)} concepts, seeds {each[0]} to {each[-1]}: {min(different.values())} to "
        f"{max(different.values())} different pictures; fewer than {seeds - 1}: {few or 'none'}"
    )


def draw_windows(llm: ImageLLM, options: argparse.Namespace) -> Image.Image:
    """A line of pictures per window, one picture at a time, so that their times mean something."""
    prompts = [f"{options.style} {prompt}".strip() for prompt in PROMPTS]
    llm.generate(prompts[0], window=min(WINDOWS), progress=False)  # warm-up
    lines = []
    for window in WINDOWS:
        results = [
            llm.generate(prompt, window=window, seed=options.seed, progress=False)[0]
            for prompt in prompts
        ]
        seconds = statistics.median(result.seconds for result in results)
        name = "raster" if window == max(WINDOWS) else f"window {window}"
        label = f"{name}\n{results[0].steps} steps\n{seconds:.2f} s"
        lines.append((label, [result.image for result in results]))
        print(label.replace("\n", ", "))
    return compose(lines, list(PROMPTS))


def draw_concepts(llm: ImageLLM, options: argparse.Namespace) -> Image.Image:
    """Everything the model knows, in alphabetical order, as it comes out."""
    names: list[str] = list(llm.model.spec.details["concepts"])  # type: ignore[call-overload]
    prompts = [f"{options.style} {name}".strip() for name in names]
    results = llm.generate(prompts, seed=[options.seed] * len(prompts))
    step, lines = TILE // 2 + GAP, -(-len(names) // PER_ROW)
    sheet = Image.new("RGB", (step * PER_ROW, (step + CAPTION // 2) * lines), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(9)
    for index, (name, result) in enumerate(zip(names, results, strict=True)):
        x, y = index % PER_ROW * step, index // PER_ROW * (step + CAPTION // 2)
        tile = result.image.resize((TILE // 2, TILE // 2), Image.Resampling.LANCZOS)
        sheet.paste(tile, (x, y))
        pen.text((x + 1, y + TILE // 2), name, fill="black", font=font)
    return sheet


def compose(lines: list[tuple[str, list[Image.Image]]], names: list[str]) -> Image.Image:
    """Lay the pictures out, a line per window, labels at the left and prompts below."""
    step = TILE + GAP
    sheet = Image.new("RGB", (LABEL + step * len(names), step * len(lines) + CAPTION), "white")
    pen = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(20), ImageFont.load_default(15)
    for y, (label, pictures) in enumerate(lines):
        pen.multiline_text((8, y * step + 28), label, fill="black", font=font)
        for x, picture in enumerate(pictures):
            tile = picture.resize((TILE, TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (LABEL + x * step, y * step))
    for x, name in enumerate(names):
        pen.text((LABEL + x * step + 4, step * len(lines) + 3), name, fill="black", font=small)
    return sheet


if __name__ == "__main__":
    main()
