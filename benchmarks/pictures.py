"""Draw the README's picture: the same prompts and seeds under several windows, timed.

python -m benchmarks.pictures --output docs/pictures.png
python -m benchmarks.pictures --concepts --style twemoji --output zipar_vllm/demo/twemoji.png
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from zipar_vllm.config import ImageParams
from zipar_vllm.engine.arguments import engine_arguments
from zipar_vllm.engine.client import engine_request
from zipar_vllm.models.demo import DEMO_PATH
from zipar_vllm.models.registry import load_image_model

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


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        tokens: Vocabulary ids in raster order, terminators included.
        steps: Forward passes, as the engine counted them.
        seconds: Wall time of its tokens.
        pixels: uint8 ``[H, W, 3]``.
    """

    tokens: list[int]
    steps: int
    seconds: float
    pixels: torch.Tensor


def request_of(model: Any, prompt: str, params: ImageParams) -> tuple[Any, Any]:
    """A prompt as a vLLM request."""
    unconditional = model.encode_unconditional(None) if params.unconditional_length else []
    terminated = model.spec.tokens.row_terminator is not None
    return engine_request(model.encode_prompt(prompt), unconditional, params, terminated)


def draw(llm: Any, model: Any, prompt: str, params: ImageParams) -> Picture:
    """Decode one image, alone."""
    tokens = model.spec.tokens
    request, sampling = request_of(model, prompt, params)
    start = time.perf_counter()
    output = llm.generate([request], [sampling], use_tqdm=False)[0]
    seconds = time.perf_counter() - start
    drawn = list(output.outputs[0].token_ids)
    codes = [token - tokens.start for token in drawn if token != tokens.row_terminator]
    pixels = model.decode(torch.tensor(codes).view(1, params.rows, params.columns))[0]
    return Picture(drawn, output.kv_transfer_params["zipar_steps"], seconds, pixels)


def image_of(picture: Picture) -> Image.Image:
    return Image.fromarray(picture.pixels.numpy())


def make_params(model: Any, window: int, seed: int) -> ImageParams:
    grid = next(iter(model.spec.grids.values()))
    defaults = model.spec.defaults
    guided = defaults.guidance_scale != 1
    return ImageParams(
        rows=grid.rows,
        columns=grid.columns,
        window=window,
        seed=seed,
        unconditional_length=len(model.encode_unconditional(None)) if guided else 0,
        guidance_scale=defaults.guidance_scale,
        temperature=defaults.temperature,
        top_k=defaults.top_k,
        top_p=defaults.top_p,
    )


def main() -> None:
    from vllm import LLM

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/pictures.png"))
    parser.add_argument("--style", default="", help="style word put before every prompt")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--concepts", action="store_true", help="all it knows, under its default window, untimed"
    )
    options = parser.parse_args()
    model = load_image_model(DEMO_PATH)
    llm = LLM(**engine_arguments(DEMO_PATH), kv_cache_memory_bytes=256 << 20)
    prompts = [f"{options.style} {prompt}".strip() for prompt in PROMPTS]
    draw(llm, model, prompts[0], make_params(model, 4, 0))  # warm-up
    if options.concepts:
        compose_concepts(llm, model, options).save(options.output)
        return
    rows = []
    for window in WINDOWS:
        drawn = [draw(llm, model, p, make_params(model, window, options.seed)) for p in prompts]
        seconds = statistics.median(picture.seconds for picture in drawn)
        name = "raster" if window == max(WINDOWS) else f"window {window}"
        label = f"{name}\n{drawn[0].steps} steps\n{seconds:.2f} s"
        rows.append((label, [image_of(picture) for picture in drawn]))
        print(rows[-1][0].replace("\n", ", "))
    compose(rows, list(PROMPTS)).save(options.output)


def compose_concepts(llm: Any, model: Any, options: argparse.Namespace) -> Image.Image:
    """Everything the model knows, in alphabetical order, as it comes out."""
    names = model.spec.details["concepts"]
    params = make_params(model, model.spec.defaults.window, options.seed)
    step, rows = TILE // 2 + GAP, -(-len(names) // PER_ROW)
    sheet = Image.new("RGB", (step * PER_ROW, (step + CAPTION // 2) * rows), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(9)
    for index, name in enumerate(names):
        picture = image_of(draw(llm, model, f"{options.style} {name}".strip(), params))
        x, y = index % PER_ROW * step, index // PER_ROW * (step + CAPTION // 2)
        sheet.paste(picture.resize((TILE // 2, TILE // 2), Image.Resampling.LANCZOS), (x, y))
        pen.text((x + 1, y + TILE // 2), name, fill="black", font=font)
    return sheet


def compose(rows: list[tuple[str, list[Image.Image]]], names: list[str]) -> Image.Image:
    """Lay the pictures out, a row a window, labels at the left and prompts below."""
    step = TILE + GAP
    sheet = Image.new("RGB", (LABEL + step * len(names), step * len(rows) + CAPTION), "white")
    pen = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(20), ImageFont.load_default(15)
    for y, (label, pictures) in enumerate(rows):
        pen.multiline_text((8, y * step + 28), label, fill="black", font=font)
        for x, picture in enumerate(pictures):
            sheet.paste(
                picture.resize((TILE, TILE), Image.Resampling.LANCZOS), (LABEL + x * step, y * step)
            )
    for x, name in enumerate(names):
        pen.text((LABEL + x * step + 4, step * len(rows) + 3), name, fill="black", font=small)
    return sheet


if __name__ == "__main__":
    main()
