"""``zipar serve``: vLLM's API server over an image model."""

from __future__ import annotations

import argparse
import enum
import sys
from pathlib import Path
from typing import Any

from server import lifecycle, vllm_server
from server.options import ServerOptions, flag_of, take_flags, usage_of
from zipar_vllm.models import DEMO_PATH
from zipar_vllm.version import check_vllm_version

from .environment import say, set_environment, starting
from .preloading import preload_engine

USAGE = f"""usage: zipar serve [MODEL] [options]

Serve images over HTTP; without MODEL, the embedded demo model, as `zipar-demo`.

options: `vllm serve`'s, and
  {", ".join(usage_of(name) for name in ServerOptions.model_fields)}
"""

DEMO_NAME = "zipar-demo"
ALIAS = "gpt-image-1"
"""Served beside the model's own name: clients of the OpenAI API know no other."""
DEMO_KV_CACHE_BYTES = 1 << 30
"""KV cache of the embedded model where nothing else is asked for: some 300 guided images."""
DEFAULTS = ["--shutdown-timeout", "60", "--middleware", "server.middleware.RequestIdMiddleware"]
"""Running images are finished at SIGTERM; every answer has a request id."""
REPLACEABLE = ("model", "block_size", "compilation_config")
"""Engine arguments that a user may change; the others image decoding cannot do without."""


def main(arguments: list[str]) -> None:
    """Start the server; exits with 1 when it ended unasked: its engine died."""
    asks_for_help = bool({"-h", "--help"} & set(arguments))
    if asks_for_help:
        print(USAGE, end="\nvLLM's own options:\n\n")
    set_environment()
    try:
        arguments = take_flags(arguments)
        check_vllm_version()
    except (RuntimeError, ValueError) as error:
        sys.exit(f"zipar serve: {error}")
    if not asks_for_help:
        say("serve", "importing vLLM, the server and the engine at the same time: some 15 to 40 s")
    context = None if asks_for_help else preload_engine()
    vllm_server.run(vllm_arguments(arguments), complete, context)
    if not lifecycle.stop_requested():
        sys.exit("zipar serve: the engine died")


def complete(options: argparse.Namespace) -> str | None:
    """Fill in what is fastest here where the user asked for nothing.

    Returns:
        What is wrong: with the model, or with an option that image decoding cannot do without.
        None if nothing is.
    """
    from zipar_vllm.engine.arguments import (
        RANKS,
        check_quantisation,
        check_wishes,
        model_classes,
        preferred_arguments,
        prompt_arguments,
        required_arguments,
    )
    from zipar_vllm.engine.pixel_memory import tell_pixel_device
    from zipar_vllm.models.registry import find_problems

    try:
        check_wishes(vars(options))
    except ValueError as error:
        return str(error)
    problems = find_problems(options.model_tag, options.revision)
    if problems:
        more = len(problems) - 1
        return f"{problems[0]}" + (f"; {more} more by zipar check" if more else "")
    try:
        check_quantisation(options.model_tag, options.revision, options.quantization)
    except ValueError as error:
        return str(error)
    classes = model_classes(options.model_tag, options.revision)
    options.model_class_overrides = {**classes, **options.model_class_overrides}
    pixel_device = ServerOptions().pixel_device
    options.additional_config = tell_pixel_device(options.additional_config, pixel_device)
    for name, value in prompt_arguments(options.model_tag, options.revision).items():
        setattr(options, name, value)
    preferred = preferred_arguments({name: getattr(options, name) for name in RANKS})
    for name, value in preferred.items():
        if getattr(options, name) in (None, "auto"):
            setattr(options, name, value)
    for name, needed in required_arguments(options.model).items():
        if name in REPLACEABLE:
            continue
        got = getattr(options, name)
        if isinstance(needed, dict):
            got = {key: _plain(getattr(got, key, None)) for key in needed}
        if got != needed:
            return f"{flag_of(name)}: got {got}, image decoding needs {needed}"
    say("serve", f"{starting(options.dtype)}; a first start compiles, a minute or less")
    return None


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, enum.Enum) else value


def vllm_arguments(arguments: list[str]) -> list[str]:
    """Build the command line of ``vllm serve``: ours first, so that the user's options win.

    An option that image decoding cannot do without is checked again when the engine starts.
    """
    from zipar_vllm.engine.arguments import command_line

    positional = bool(arguments) and not arguments[0].startswith("-")
    model = arguments[0] if positional else str(DEMO_PATH)
    options = arguments[1:] if positional else arguments
    ours = [*command_line(model), *DEFAULTS, "--served-model-name", _name(model), ALIAS]
    if not positional and not any(option.startswith("--gpu-memory") for option in options):
        ours += ["--kv-cache-memory-bytes", str(DEMO_KV_CACHE_BYTES)]
    return [*ours, *options]


def _name(model: str) -> str:
    """Served model name: a local folder's last component, so that no path leaks."""
    if model == str(DEMO_PATH):
        return DEMO_NAME
    return Path(model).resolve().name if Path(model).is_dir() else model
