"""Compare windows, fixed and adaptive: forward passes, seconds, and what becomes of the pictures.

``python -m benchmarks.windows`` draws everything the embedded model knows, one image at a time, and
writes ``benchmarks/results/windows.json`` and ``windows.md``. Two figures judge the pictures beside
the eye. The *NLL* is the model's own: nats per token of the finished picture in raster order, where
each token is predicted from all before it; broken shapes are unlikely. *PSNR* is against the raster
picture of the same prompt and seed.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.machine import machine_name
from benchmarks.report import RESULTS, command_line, markdown_table, write_results
from zipar_vllm import GeneratedImage, ImageLLM
from zipar_vllm.models import DEMO_PATH
from zipar_vllm.models.base import ImageModel

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
    nll_nats: float
    psnr_db: float | None
    machine: str
    command: str


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB, at most 99."""
    error = float((one - other).square().mean())
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


@torch.no_grad()
def nll(scorer: Any, model: ImageModel, result: GeneratedImage) -> float:
    """Mean nats of a picture's sampled tokens, each predicted from all before it."""
    grid = next(iter(model.spec.grids.values()))
    ids = model.prompts(result.prompt, None, grid, False).conditional
    vocabulary = model.spec.vocabulary
    logits = scorer(torch.tensor([[*ids, *result.tokens]])).logits[0, len(ids) - 1 : -1]
    targets = torch.tensor(result.tokens)
    sampled = targets != (-1 if vocabulary.row_terminator is None else vocabulary.row_terminator)
    logits = vocabulary.select(logits[sampled]).float()
    return float(cross_entropy(logits, vocabulary.codes(targets[sampled])))


def pixels(result: GeneratedImage) -> torch.Tensor:
    return torch.from_numpy(np.asarray(result.image).astype(np.float64))


def make_table(records: Sequence[Record]) -> str:
    """The records as Markdown."""
    first = records[0]
    lines = [
        "# Windows",
        "",
        f"{first.machine}; `{first.command}`; {first.pictures} pictures per line, one at a time",
        "",
        "Passes are means, with the fewest and the most; seconds are of the tokens, median. "
        "NLL is the model's own, in nats per token in raster order; PSNR is against the raster "
        "picture of the same prompt and seed.",
        "",
    ]
    rows = []
    for record in records:
        name = f"{record.window} or more" if record.adaptive else str(record.window)
        if record.psnr_db is None:
            name += " (raster)"
        cells = [name, f"{record.steps:.0f}"]
        if record.steps_min < record.steps_max:
            cells[-1] += f" ({record.steps_min} to {record.steps_max})"
        cells += [f"{record.seconds_p50:.2f}", f"{record.nll_nats:.3f}"]
        rows.append([*cells, "" if record.psnr_db is None else f"{record.psnr_db:.1f}"])
    head = ["window", "forward passes", "seconds", "NLL", "PSNR, dB"]
    return "\n".join([*lines, *markdown_table(head, rows)]) + "\n"


def main() -> None:
    from transformers import AutoModelForCausalLM

    parser = argparse.ArgumentParser(prog="python -m benchmarks.windows", description=__doc__)
    parser.add_argument("--windows", type=int, nargs="+", default=list(WINDOWS))
    parser.add_argument("--pictures", type=int, help="default: one of all the model knows")
    parser.add_argument("--seed", type=int, default=1, help="of the first picture, then one more")
    parser.add_argument("--temperature", type=float, help="default: the model's")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    scorer = AutoModelForCausalLM.from_pretrained(DEMO_PATH, dtype=torch.float32).eval()
    llm = ImageLLM()
    known: Any = llm.model.spec.details["concepts"]
    prompts = known[: options.pictures]
    columns = next(iter(llm.model.spec.grids.values())).columns
    llm.generate(prompts[0], window=1, progress=False)  # warm-up

    records: list[Record] = []
    raster: list[torch.Tensor] = []
    settings = [(columns, False)]
    settings += [(window, adaptive) for window in options.windows for adaptive in (False, True)]
    wishes = {} if options.temperature is None else {"temperature": options.temperature}
    for window, adaptive in settings:
        results = [
            llm.generate(
                prompt,
                window=window,
                adaptive=adaptive,
                seed=options.seed + index,
                progress=False,
                **wishes,
            )[0]
            for index, prompt in enumerate(prompts)
        ]
        drawn = [pixels(result) for result in results]
        ratios = [psnr(one, other) for one, other in zip(drawn, raster, strict=False)]
        raster = raster or drawn
        steps = [result.steps for result in results]
        records.append(
            Record(
                window=window,
                adaptive=adaptive,
                pictures=len(results),
                steps=round(statistics.mean(steps), 1),
                steps_min=min(steps),
                steps_max=max(steps),
                seconds_p50=round(statistics.median(r.seconds for r in results), 4),
                nll_nats=round(statistics.mean(nll(scorer, llm.model, r) for r in results), 4),
                psnr_db=round(statistics.mean(ratios), 2) if ratios else None,
                machine=machine_name(),
                command=command_line("benchmarks.windows"),
            )
        )
        print(records[-1], flush=True)
    llm.close()
    listing = [asdict(record) for record in records]
    write_results(options.output, "windows", listing, make_table(records))
    print(make_table(records))


if __name__ == "__main__":
    main()
