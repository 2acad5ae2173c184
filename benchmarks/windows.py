"""Compare windows, fixed and adaptive: forward passes, seconds, and what becomes of the pictures.

``python -m benchmarks.windows`` draws everything the embedded model knows, one image at a time, and
writes ``benchmarks/results/windows.json`` and ``windows.md``. Two figures judge the pictures beside
the eye. *Surprise* is the model's own: nats a token that it gives the finished picture in raster
order, where it sees every token before; a picture with broken shapes surprises it. *PSNR* is
against the raster picture of the same prompt and seed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.latency import RESULTS, machine_name, write_results
from benchmarks.pictures import Picture, draw, make_params
from zipar_vllm.engine.arguments import engine_arguments
from zipar_vllm.models.demo import DEMO_PATH
from zipar_vllm.models.registry import load_image_model

WINDOWS = (8, 4, 2, 1)


@dataclass(frozen=True)
class Record:
    """Means over all pictures of one setting; the seconds are a median."""

    window: int
    adaptive: bool
    pictures: int
    steps: float
    steps_min: int
    steps_max: int
    seconds_p50: float
    surprise_nats: float
    psnr_db: float | None
    machine: str
    command: str


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB, at most 99."""
    error = float((one - other).square().mean())
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


@torch.no_grad()
def surprise(scorer: Any, model: Any, prompt: str, picture: Picture) -> float:
    """Mean nats of a picture's drawn tokens, each predicted from all before it in raster order."""
    ids = model.encode_prompt(prompt)
    tokens = model.spec.tokens
    logits = scorer(torch.tensor([[*ids, *picture.tokens]])).logits[0, len(ids) - 1 : -1]
    targets = torch.tensor(picture.tokens)
    sampled = targets != (-1 if tokens.row_terminator is None else tokens.row_terminator)
    logits = logits[sampled][:, tokens.start : tokens.stop].float()
    return float(cross_entropy(logits, targets[sampled] - tokens.start))


def make_table(records: Sequence[Record]) -> str:
    """The records as Markdown."""
    first = records[0]
    lines = [
        "# Windows",
        "",
        f"{first.machine}; `{first.command}`; {first.pictures} pictures a line, one at a time",
        "",
        "Passes are means, with the fewest and the most; seconds are of the tokens, median. "
        "Surprise is the model's own, in nats a token in raster order; PSNR is against the raster "
        "picture of the same prompt and seed.",
        "",
        "| window | forward passes | seconds | surprise | PSNR, dB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for record in records:
        name = f"{record.window} or more" if record.adaptive else str(record.window)
        if record.psnr_db is None:
            name += " (raster)"
        cells = [name, f"{record.steps:.0f}"]
        if record.steps_min < record.steps_max:
            cells[-1] += f" ({record.steps_min} to {record.steps_max})"
        cells += [f"{record.seconds_p50:.2f}", f"{record.surprise_nats:.3f}"]
        cells += ["" if record.psnr_db is None else f"{record.psnr_db:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    from transformers import AutoModelForCausalLM
    from vllm import LLM

    parser = argparse.ArgumentParser(prog="python -m benchmarks.windows", description=__doc__)
    parser.add_argument("--windows", type=int, nargs="+", default=list(WINDOWS))
    parser.add_argument("--pictures", type=int, help="default: one of all the model knows")
    parser.add_argument("--seed", type=int, default=1, help="of the first picture, then one more")
    parser.add_argument("--temperature", type=float, help="default: the model's")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    model = load_image_model(DEMO_PATH)
    scorer = AutoModelForCausalLM.from_pretrained(DEMO_PATH, dtype=torch.float32).eval()
    llm = LLM(**engine_arguments(DEMO_PATH), kv_cache_memory_bytes=256 << 20)
    prompts = model.spec.details["concepts"][: options.pictures]
    columns = next(iter(model.spec.grids.values())).columns
    draw(llm, model, prompts[0], make_params(model, 1, 0))  # warm-up

    records: list[Record] = []
    raster: list[torch.Tensor] = []
    settings = [(columns, False)]
    settings += [(window, adaptive) for window in options.windows for adaptive in (False, True)]
    for window, adaptive in settings:
        params = [
            replace(make_params(model, window, options.seed + index), adaptive=adaptive)
            for index in range(len(prompts))
        ]
        if options.temperature is not None:
            params = [replace(p, temperature=options.temperature) for p in params]
        pictures = [draw(llm, model, p, q) for p, q in zip(prompts, params, strict=True)]
        drawn = [picture.pixels.double() for picture in pictures]
        scores = [surprise(scorer, model, p, q) for p, q in zip(prompts, pictures, strict=True)]
        ratios = [psnr(one, other) for one, other in zip(drawn, raster, strict=False)]
        raster = raster or drawn
        steps = [picture.steps for picture in pictures]
        records.append(
            Record(
                window=window,
                adaptive=adaptive,
                pictures=len(pictures),
                steps=round(statistics.mean(steps), 1),
                steps_min=min(steps),
                steps_max=max(steps),
                seconds_p50=round(statistics.median(p.seconds for p in pictures), 4),
                surprise_nats=round(statistics.mean(scores), 4),
                psnr_db=round(statistics.mean(ratios), 2) if ratios else None,
                machine=machine_name(),
                command=" ".join(["python -m benchmarks.windows", *sys.argv[1:]]),
            )
        )
        print(records[-1], flush=True)
    rows = [asdict(record) for record in records]
    write_results(options.output, "windows", rows, make_table(records))
    print(make_table(records))


if __name__ == "__main__":
    main()
