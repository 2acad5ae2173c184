"""``zipar convert``: a checkpoint in its authors' own layout becomes one that can be served."""

from __future__ import annotations

import argparse
from pathlib import Path

from zipar_vllm.errors import UnusableModelError


def main(arguments: list[str]) -> None:
    """Convert, then check what was written; exits with 2 if either fails."""
    parser = argparse.ArgumentParser(
        prog="zipar convert",
        description="Write a checkpoint in its authors' own layout as one that can be served.",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id")
    parser.add_argument("target", metavar="FOLDER", type=Path, help="a new folder")
    parser.add_argument("--revision", help="of the hub id (default: main)")
    options = parser.parse_args(arguments)
    from zipar_vllm.models.registry import check_image_model, convert

    try:
        convert(options.model, options.target, options.revision)
        check_image_model(options.target)
    except (UnusableModelError, FileExistsError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(f"{options.target}: a complete checkpoint")
