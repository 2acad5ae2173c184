"""``zipar models``: what there is to know of image models before they are served."""

from __future__ import annotations

import argparse

from zipar_vllm.core.grid import Grid
from zipar_vllm.errors import UnusableModelError

PROMPT_TOKENS = 64
"""Assumed length of a lane's prompt, where memory is told."""


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="zipar models",
        description="Tell a model's sizes, defaults, steps and memory, off its config.json alone; "
        "without MODEL, the architectures that can be served.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="a folder or a hub id")
    parser.add_argument("--revision", help="of the hub ids (default: main)")
    return parser


def main(arguments: list[str]) -> None:
    """Print a table per model; exits with 2 if one is no image model."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    from zipar_vllm.models.registry import architectures

    if not options.models:
        print("\n".join(architectures()))
    try:
        for model in options.models:
            print("\n".join(describe(model, options.revision)))
    except UnusableModelError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def describe(model: str, revision: str | None = None) -> list[str]:
    """Lines about a model: its defaults, then a table of its sizes.

    Raises:
        UnusableModelError: it is no image model of a known family, or lacks a file.
    """
    from zipar_vllm.models.registry import load_spec

    spec = load_spec(model, revision)
    defaults = spec.defaults.model_dump(exclude_none=True)
    per_token = kv_bytes_per_token(model, revision)
    lanes = 1 if defaults.get("guidance_scale", 1.0) == 1.0 else 2
    lines = [
        f"{model}: {spec.family}",
        "  " + ", ".join(f"{name} {value:g}" for name, value in defaults.items()),
        f"  {'size':<12}{'grid':<10}{'steps':>6}{'raster':>8}{'KV cache per image':>20}",
    ]
    for size, grid in spec.grids.items():
        window = min(defaults.get("window", grid.columns), grid.columns)
        memory = lanes * (grid.num_positions + PROMPT_TOKENS) * per_token / 2**20
        lines.append(
            f"  {size:<12}{_shape(grid):<10}{grid.num_steps(window):>6}"
            f"{grid.num_steps(grid.columns):>8}{memory:>16.0f} MiB"
        )
    return lines


def kv_bytes_per_token(model: str, revision: str | None = None) -> int:
    """Bytes of keys and values of a token of a lane, in the checkpoint's dtype."""
    import torch
    from transformers import AutoConfig

    from zipar_vllm.models.checkpoint import CONFIG, Checkpoint

    folder = Checkpoint(model, revision).file(CONFIG).parent
    config = AutoConfig.from_pretrained(folder)
    body = config.get_text_config()
    heads = body.num_attention_heads
    kv_heads = getattr(body, "num_key_value_heads", None) or heads
    size = getattr(body, "head_dim", None) or body.hidden_size // heads
    dtype = getattr(config, "dtype", None) or torch.bfloat16
    return int(2 * body.num_hidden_layers * kv_heads * size * dtype.itemsize)


def _shape(grid: Grid) -> str:
    return f"{grid.rows} x {grid.columns}"
