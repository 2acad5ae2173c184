"""Drafts: passes and seconds of windows with and without them, and whether pictures stay the same.

``python -m benchmarks.drafts`` draws pictures of the embedded model, or of ``--model``, with each
number of drafts in turn, round after round, so that what else the machine does falls on all of
them alike, and writes ``benchmarks/results/drafts.json`` and ``drafts.md``. Ratios are to no drafts
within one run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import latency
from benchmarks.machine import Bystanders, busy_sentence, machine_name
from benchmarks.random_models import LLAMAGEN_B, named_model
from benchmarks.report import RESULTS, command_line, markdown_table, write_results
from zipar_vllm import ImageLLM
from zipar_vllm.cpu import has_bfloat16
from zipar_vllm.llm import DecodedImage
from zipar_vllm.models import DEMO_PATH

PROMPTS = ("red apple", "pizza", "alien", "balloon", "bee", "banana")
DRAFTS: tuple[int | str, ...] = (0, 4, 8, 16, "auto")


@dataclass(frozen=True)
class Record:
    """One setting; passes and accepted drafts are means, seconds of all images a median.

    ``speedup`` is beside no drafts, the median of the rounds' own ratios, ``beside_stock`` beside
    stock vLLM with as many requests.
    """

    window: int
    requests: int
    drafts: int | str
    passes: float
    seconds: float
    images_per_s: float
    speedup: float
    beside_stock: float | None
    accepted: float | None
    same_pictures: int
    pictures: int


def measure(
    llm: ImageLLM,
    prompts: Sequence[str],
    window: int,
    drafts: Sequence[int | str],
    rounds: int,
    temperature: float | None,
    stock: float | None = None,
) -> list[Record]:
    """One window and one number of requests; round k has seeds of its own.

    ``stock``: stock vLLM's images per second.
    """
    runs: dict[int | str, list[list[DecodedImage]]] = {number: [] for number in drafts}
    count = len(prompts)
    for round_ in range(rounds + 1):  # the first warms up
        for number in drafts if round_ % 2 else reversed(drafts):
            images = llm.prepare(
                prompts,
                seed=list(range(round_ * count, (round_ + 1) * count)),
                window=window,
                drafts=number,
                temperature=temperature,
            )
            decoded = llm.decode(images)
            if round_:
                runs[number].append(decoded)
    plain = runs[drafts[0]]
    seconds = {
        number: [max(image.seconds for image in run) for run in own] for number, own in runs.items()
    }
    records = []
    for number, own in runs.items():
        done = [image for run in own for image in run]
        median = statistics.median(seconds[number])
        pairs = zip(seconds[drafts[0]], seconds[number], strict=True)
        shares = [image.accepted_drafts for image in done if image.accepted_drafts is not None]
        records.append(
            Record(
                window=window,
                requests=count,
                drafts=number,
                passes=statistics.mean(image.steps for image in done),
                seconds=median,
                images_per_s=count / median,
                speedup=statistics.median(without / own for without, own in pairs),
                beside_stock=count / median / stock if stock else None,
                accepted=statistics.mean(shares) if shares else None,
                same_pictures=sum(
                    one.tokens == other.tokens
                    for run, plain_run in zip(own, plain, strict=True)
                    for one, other in zip(run, plain_run, strict=True)
                ),
                pictures=len(done),
            )
        )
    return records


def make_table(records: Sequence[Record], circumstances: str) -> str:
    """The records as Markdown."""
    head = [
        "window",
        "requests",
        "drafts",
        "passes",
        "seconds",
        "images/s",
        "beside no drafts",
        "beside stock",
        "accepted",
        "same",
    ]
    rows = [
        [
            str(r.window),
            str(r.requests),
            str(r.drafts),
            f"{r.passes:.0f}",
            f"{r.seconds:.2f}",
            f"{r.images_per_s:.2f}",
            f"{r.speedup:.2f}x",
            "" if r.beside_stock is None else f"{r.beside_stock:.1f}x",
            "" if r.accepted is None else f"{r.accepted:.0%}",
            f"{r.same_pictures} of {r.pictures}",
        ]
        for r in records
    ]
    text = [
        "# Drafts",
        "",
        circumstances,
        "",
        "Passes are means per image; seconds are of all requests together, a median; beside no",
        "drafts is the median of the rounds' own ratios; stock vLLM drew as many pictures just",
        "before; accepted is the share of drafts that were right; same",
        "counts the pictures that are those without drafts, token for token.",
        "",
        *markdown_table(head, rows),
        "",
    ]
    return "\n".join(text)


def stock_images_per_s(options: argparse.Namespace) -> dict[int, float]:
    """Stock vLLM's images per second, by the number of requests."""
    words = ["--requests", *map(str, options.requests), "--repeats", str(options.rounds)]
    words += ["--eager"] * options.eager
    words += ["--model", str(options.model)]
    words += ["--dtype", options.dtype]
    records = latency.run_engine("stock", latency.parse(words))
    return {record.requests: record.images_per_s for record in records}


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drafts", description=__doc__)
    parser.add_argument(
        "--model",
        type=Path,
        default=DEMO_PATH,
        help=f"a folder, or {LLAMAGEN_B}: random, of that size (default: the embedded model)",
    )
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 24])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--drafts", nargs="+", default=[str(number) for number in DRAFTS])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--temperature", type=float, help="the model's default if not given")
    parser.add_argument("--dtype", default="bfloat16" if has_bfloat16() else "float32")
    parser.add_argument("--no-stock", action="store_true", help="not beside stock vLLM")
    parser.add_argument("--eager", action="store_true", help="do not compile the model")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--name", default="drafts", help="of the result files")
    options = parser.parse_args()
    bystanders = Bystanders()
    with named_model(options.model) as options.model:
        records = measure_all(options)
    circumstances = f"{machine_name()}, {options.dtype}; `{command_line('benchmarks.drafts')}`"
    busy = bystanders.busy_cores()
    about = {"circumstances": circumstances, "busy_cores": busy}
    write_results(
        options.output,
        options.name,
        [{**asdict(record), **about} for record in records],
        make_table(records, f"{circumstances}. {busy_sentence(busy)}"),
    )


def measure_all(options: argparse.Namespace) -> list[Record]:
    """All settings, after stock vLLM."""
    drafts = [int(text) if text.isdecimal() else text for text in options.drafts]
    stock = {} if options.no_stock else stock_images_per_s(options)
    records: list[Record] = []
    with ImageLLM(
        options.model,
        dtype=options.dtype,
        enforce_eager=options.eager,
        max_num_seqs=max(options.requests),
        disable_log_stats=True,
    ) as llm:
        for requests in options.requests:
            chosen = [PROMPTS[index % len(PROMPTS)] for index in range(requests)]
            for window in options.windows:
                records += measure(
                    llm,
                    chosen,
                    window,
                    drafts,
                    options.rounds,
                    options.temperature,
                    stock.get(requests),
                )
                print(make_table(records[-len(drafts) :], ""))
    return records


if __name__ == "__main__":
    main()
