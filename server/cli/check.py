"""``zipar check``: whether a checkpoint can be served, without loading it."""

from __future__ import annotations

import argparse

from zipar_vllm.errors import UnusableModelError


def main(arguments: list[str]) -> None:
    """Say what is wrong first, with exit code 2, or that nothing is."""
    parser = argparse.ArgumentParser(
        prog="zipar check",
        description="See whether a checkpoint is complete and its parts fit: config.json, names "
        "and shapes of its tensors, tokenizer and special tokens, pixel decoder.",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id")
    parser.add_argument("--revision", help="of the hub id (default: main)")
    options = parser.parse_args(arguments)
    from zipar_vllm.models.registry import check_image_model, load_spec

    try:
        check_image_model(options.model, options.revision)
    except UnusableModelError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    family = load_spec(options.model, options.revision).family
    print(f"{options.model}: a complete checkpoint of {family}")
