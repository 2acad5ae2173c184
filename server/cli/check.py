"""``zipar check``: whether a checkpoint can be served, without loading it."""

from __future__ import annotations

import argparse


def main(arguments: list[str]) -> None:
    """Say all that is wrong, a line each, with exit code 2, or that nothing is."""
    parser = argparse.ArgumentParser(
        prog="zipar check",
        description="See whether a checkpoint is complete and its parts fit: config.json, names "
        "and shapes of its tensors, tokenizer and special tokens, pixel decoder. Tells all that it "
        "finds, and what to do about it.",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id")
    parser.add_argument("--revision", help="of the hub id (default: main)")
    options = parser.parse_args(arguments)
    from zipar_vllm.models.registry import find_problems, load_spec

    problems = find_problems(options.model, options.revision)
    if problems:
        lines = [f"{parser.prog}: error: {problem}; {problem.remedy}\n" for problem in problems]
        parser.exit(2, "".join(lines))
    family = load_spec(options.model, options.revision).family
    print(f"{options.model}: a complete checkpoint of {family}")
