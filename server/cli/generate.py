"""``zipar generate``: pictures of prompts, without a server."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from zipar_vllm.params import ImageOptions, allowed_by

from .environment import say, set_environment, starting

SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")


def make_parser() -> argparse.ArgumentParser:
    """The command's options: those of the project's images are read off their type."""
    parser = argparse.ArgumentParser(prog="zipar generate", description=__doc__)
    parser.add_argument("prompts", nargs="+", metavar="PROMPT")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("out.png"),
        help="a file, or a folder for several pictures (default: out.png)",
    )
    parser.add_argument("--model", help="folder of an image model (default: the embedded one)")
    parser.add_argument("--seed", type=int, help="of the first picture, the next has one more")
    add_image_options(parser)
    return parser


def add_image_options(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Add a flag for every option of an image but some."""
    schema = ImageOptions.model_json_schema()
    for name, field in schema["properties"].items():
        if name in without:
            continue
        flag = "--" + name.replace("_", "-")
        kinds = [choice["type"] for choice in field["anyOf"] if choice["type"] != "null"]
        kind = kinds[0]
        if len(kinds) > 1:
            parser.add_argument(flag, type=_number_or_word, help=allowed_by(schema, [name]))
        elif kind == "boolean":
            parser.add_argument(flag, action="store_const", const=True)
        else:
            number = {"integer": int, "number": float}.get(kind, str)
            parser.add_argument(flag, type=number, help=allowed_by(schema, [name]))


def wishes_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options of an image that were given."""
    given = {name: getattr(options, name, None) for name in ImageOptions.model_fields}
    return {name: value for name, value in given.items() if value is not None}


def main(arguments: list[str]) -> None:
    """Generate the pictures and say how each came about."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    several = len(options.prompts) > 1
    if not several and options.output.suffix.lower() not in SUFFIXES:
        allowed = ", ".join(SUFFIXES)
        parser.error(f"output: got {options.output}, allowed is a file that ends in {allowed}")
    set_environment(quiet=True)
    say("generate", "importing vLLM: some 10 to 30 s")
    # vLLM is imported late: `--help` and bad options answer at once.
    from zipar_vllm.llm import ImageLLM

    wishes = wishes_of(options)
    try:
        llm = ImageLLM(options.model)
        llm.prepare(options.prompts, seed=options.seed, **wishes)
    except ValueError as error:
        parser.error(str(error))
    say("generate", f"{starting(None)}; a first start compiles, a minute or less")
    with llm:
        images = llm.generate(options.prompts, seed=options.seed, **wishes)
    for image in images:
        path = options.output
        if several:
            path = path.with_suffix("") / file_name(image.prompt, image.params.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.image.save(path)
        params = image.params
        print(
            f"{path}: seed {params.seed}, {params.policy.replace('_', ' ')} {params.window}, "
            f"{image.steps} steps, {image.seconds:.2f} s{_drafts(image.accepted_drafts)}"
        )


def _drafts(accepted: float | None) -> str:
    return "" if accepted is None else f", {accepted:.0%} of the drafts accepted"


def _number_or_word(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def file_name(prompt: str, seed: int) -> str:
    """A file's name that tells prompt and seed."""
    words: list[Any] = re.findall(r"\w+", prompt.lower())
    return f"{'-'.join(words[:8])}-seed-{seed}.png"
