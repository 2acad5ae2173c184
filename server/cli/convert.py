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
    parser.add_argument("model", metavar="MODEL", help="a folder, a hub id, or LlamaGen's .pt file")
    parser.add_argument("target", metavar="FOLDER", type=Path, help="a new folder")
    parser.add_argument("--revision", help="of the hub id (default: main)")
    files = parser.add_argument_group("for LlamaGen's .pt file")
    files.add_argument("--pixels", metavar="VQ.pt", type=Path, help="its pixel decoder's file")
    files.add_argument(
        "--image-size", type=int, help="pixels of a picture's side (default: as MODEL is named)"
    )
    files.add_argument("--heads", type=int, help="attention heads, where the size is unpublished")
    files.add_argument(
        "--text-encoder", help="T5 of a t2i model: a folder or a hub id (default: the authors')"
    )
    options = parser.parse_args(arguments)
    from zipar_vllm.models import llamagen_files
    from zipar_vllm.models.registry import check_image_model, convert

    try:
        if options.model.endswith(".pt"):
            if options.pixels is None:
                parser.exit(2, f"{parser.prog}: error: {options.model} needs its --pixels\n")
            llamagen_files.convert(
                *(Path(options.model), options.pixels, options.target),
                image_size=options.image_size,
                heads=options.heads,
                text_encoder=options.text_encoder or llamagen_files.TEXT_ENCODER,
            )
        else:
            convert(options.model, options.target, options.revision)
        check_image_model(options.target)
    except (UnusableModelError, FileExistsError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(f"{options.target}: a complete checkpoint")
