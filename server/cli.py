"""The ``zipar`` command: serve a model, or draw one picture."""

from __future__ import annotations

import argparse
import enum
import os
import sys
from pathlib import Path
from typing import Any

from zipar_vllm.models.demo import DEMO_PATH
from zipar_vllm.version import check_vllm_version

from . import lifecycle, vllm_server
from .options import ServerOptions

USAGE = """usage: zipar serve [MODEL] [options]     serve images over HTTP: `vllm serve`'s options,
                                         --max-active-images N, --image-timeout SECONDS,
                                         --max-body-bytes N, --storage-dir DIR,
                                         --storage-seconds SECONDS
       zipar generate PROMPT [options]   draw a picture without a server; `--help` lists them

Without MODEL, the embedded demo model is served as `zipar-demo`."""

DEMO_NAME = "zipar-demo"
ALIAS = "gpt-image-1"
"""Served beside the model's own name: clients of the OpenAI API know no other."""
DEMO_KV_CACHE_BYTES = 1 << 30
"""KV cache of the embedded model where nothing else is asked for: some 300 guided images."""
DEFAULTS = ["--shutdown-timeout", "60", "--middleware", "server.middleware.RequestFrame"]
"""Running images are finished at SIGTERM; every answer has a request id."""
REPLACEABLE = ("model", "block_size", "compilation_config")
"""Engine arguments that a user may change; the others image decoding cannot do without."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "serve":
        serve(rest)
    elif command == "generate":
        from .generate import main as generate

        generate(rest)
    else:
        print(USAGE, file=sys.stdout if command in ("-h", "--help") else sys.stderr)
        sys.exit(0 if command in ("-h", "--help") else 2)


def serve(arguments: list[str]) -> None:
    """Start vLLM's API server over an image model."""
    if {"-h", "--help"} & set(arguments):
        print(USAGE, end="\n\nvLLM's own options:\n\n")
    set_environment()
    try:
        check_vllm_version()
        arguments = ServerOptions.take_flags(arguments)
    except (RuntimeError, ValueError) as error:
        sys.exit(f"zipar serve: {error}")
    run_vllm(vllm_arguments(arguments))


def run_vllm(arguments: list[str]) -> None:
    """Run vLLM's API server; exits with 1 when it ended unasked: its engine died."""
    vllm_server.run(arguments, contradiction)
    if not lifecycle.told_to_stop():
        sys.exit("zipar serve: the engine died")


def contradiction(options: argparse.Namespace) -> str | None:
    """What a user asked of vLLM that image decoding cannot do, in words; None if nothing."""
    from zipar_vllm.engine.arguments import engine_arguments

    for name, needed in engine_arguments(options.model).items():
        if name in REPLACEABLE:
            continue
        got = getattr(options, name)
        if isinstance(needed, dict):
            got = {key: _plain(getattr(got, key, None)) for key in needed}
        if got != needed:
            return f"--{name.replace('_', '-')}: got {got}, image decoding needs {needed}"
    return None


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, enum.Enum) else value


def vllm_arguments(arguments: list[str]) -> list[str]:
    """What ``vllm serve`` is given: ours first, so that the user's options win.

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
    """What a model is served as; a folder by its last part, since paths are nobody's business."""
    if model == str(DEMO_PATH):
        return DEMO_NAME
    return Path(model).resolve().name if Path(model).is_dir() else model


def set_environment() -> None:
    """What has to be set before vLLM is imported."""
    os.environ.setdefault("VLLM_PLUGINS", "zipar,zipar_images")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    preload_openmp()


def preload_openmp() -> None:
    """Run again with Intel's OpenMP preloaded where it is installed: vLLM on CPU is faster so."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    loaded = os.environ.get("LD_PRELOAD", "")
    if library.exists() and library.name not in loaded and "ZIPAR_NO_PRELOAD" not in os.environ:
        os.environ["LD_PRELOAD"] = f"{library}:{loaded}".rstrip(":")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
