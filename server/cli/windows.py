"""``zipar windows``: which window a model bears."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zipar_vllm.windows import Record, Setting, WindowComparison, make_table, narrowest

from .environment import say, set_environment, starting
from .generate import add_image_options, wishes_of

EMBEDDED = "the embedded model"


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="zipar windows",
        description="Draw prompts under several windows, one picture at a time, and tell passes, "
        "seconds, the model's own score of the pictures (nats per token in raster order) and PSNR "
        "to raster order: windows.json, windows.md and sheet.png in a folder. Run again, it goes "
        "on where it ended.",
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help=f"a folder or a hub id (default: {EMBEDDED})"
    )
    parser.add_argument(
        "--prompts", type=Path, required=True, metavar="FILE", help="a prompt per line, 2 or more"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("windows"), help="folder (default: windows)"
    )
    parser.add_argument(
        "--windows", type=int, nargs="+", help="default: powers of 2 and the model's own"
    )
    parser.add_argument(
        "--adaptive",
        dest="both_kinds",
        action="store_true",
        help="compare each as an adaptive window too",
    )
    parser.add_argument(
        "--bound",
        type=_bound,
        metavar="NATS",
        help="name the narrowest window whose loss, its 95 %% interval included, is at most this",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first prompt, the next has one more (default 1)"
    )
    parser.add_argument(
        "--engine-args",
        type=_table,
        default={},
        metavar="JSON",
        help="vLLM's, such as '{\"max_model_len\": 2048}'",
    )
    add_image_options(parser, without=("window", "adaptive", "policy", "drafts"))
    return parser


def main(arguments: list[str]) -> None:
    """Draw, score, write the results and print the table."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        lines = options.prompts.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"prompts: {error}")
    prompts = [line.strip() for line in lines if line.strip()]
    set_environment(quiet=True)
    say("windows", "importing vLLM: some 10 to 30 s")
    from zipar_vllm.llm import ImageLLM

    model = options.model or EMBEDDED
    try:
        llm = ImageLLM(options.model, **options.engine_args)
        comparison = WindowComparison(
            llm,
            model,
            prompts,
            options.output,
            windows=options.windows,
            adaptive=options.both_kinds,
            seed=options.seed,
            **wishes_of(options),
        )
        dtype = options.engine_args.get("dtype")
        say("windows", f"{starting(dtype)} if any picture is missing")
        records = comparison.draw()
        llm.close()
    except ValueError as error:
        parser.error(str(error))
    _write(options, model, comparison, records)


def _write(
    options: argparse.Namespace,
    model: str,
    comparison: WindowComparison,
    records: Sequence[Record],
) -> None:
    found: dict[str, Any] = {"model": model, "seed": options.seed, "options": wishes_of(options)}
    count = f"{records[0].pictures} pictures per window, one at a time, seeds from {options.seed}"
    paragraphs = [f"{count}."]
    if options.bound is not None:
        chosen = narrowest(records, options.bound)
        setting = Setting(chosen.window, chosen.adaptive)
        found |= {"bound": options.bound, "narrowest": asdict(setting)}
        paragraphs.append(
            f"The narrowest window whose loss is at most {options.bound:g} nats per token, its "
            f"interval included: {setting}."
        )
    text = make_table(f"Windows of {model}", records, *paragraphs)
    found["windows"] = [asdict(record) for record in records]
    (options.output / "windows.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.output / "windows.md").write_text(text)
    comparison.sheet(records).save(options.output / "sheet.png")
    print(text, end="")


def _bound(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"got {text}, allowed is a number, 0 or more")
    return value


def _table(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"got {text}, which is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"got {text}, allowed is a JSON object")
    return value
