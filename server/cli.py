"""The ``zipar`` command: serve a model, or draw one picture."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from zipar_vllm.models.demo import DEMO_PATH

from .options import ServerOptions

USAGE = """usage: zipar serve [MODEL] [options]     serve images over HTTP: `vllm serve`'s options,
                                         --max-active-images N, --image-timeout SECONDS,
                                         --max-body-bytes N, --storage-dir DIR,
                                         --storage-seconds SECONDS
       zipar generate PROMPT [options]   draw a picture without a server; `--help` lists them

Without MODEL, the embedded demo model is served as `zipar-demo`."""

DEMO_NAMES = ("zipar-demo", "gpt-image-1")
DEMO_KV_CACHE_BYTES = 1 << 30
"""KV cache of the embedded model where nothing else is asked for: some 300 guided images."""


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
    set_environment()
    arguments = ServerOptions.take_flags(arguments)
    run_vllm(vllm_arguments(arguments))


def run_vllm(arguments: list[str]) -> None:
    """What ``vllm serve`` does, without its command line, which the CPU package cannot start."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    options = make_arg_parser(FlexibleArgumentParser(prog="zipar serve")).parse_args(arguments)
    configure_logging_from_args(options)
    command = ServeSubcommand()
    command.validate(options)
    command.cmd(options)


def vllm_arguments(arguments: list[str]) -> list[str]:
    """What ``vllm serve`` is given: ours first, so that the user's options win.

    An option that image decoding cannot do without is checked again when the engine starts.
    """
    from zipar_vllm.engine.arguments import command_line

    positional = bool(arguments) and not arguments[0].startswith("-")
    model = arguments[0] if positional else str(DEMO_PATH)
    options = arguments[1:] if positional else arguments
    ours = command_line(model)
    if not positional:
        ours += ["--served-model-name", *DEMO_NAMES]
        if not any(option.startswith("--gpu-memory") for option in options):
            ours += ["--kv-cache-memory-bytes", str(DEMO_KV_CACHE_BYTES)]
    return [*ours, *options]


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
