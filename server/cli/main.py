"""The table of commands."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from zipar_vllm.version import __version__

# A command's module has `main(arguments)`; it is imported once the command is asked for.
COMMANDS = {
    "serve": "serve images over HTTP",
    "generate": "generate pictures without a server",
    "windows": "compare windows: passes, seconds, what becomes of the pictures",
    "models": "tell a model's sizes, steps and memory",
    "check": "see whether a checkpoint is complete",
    "convert": "convert a checkpoint from its authors' layout",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        import_module(f"server.cli.{arguments[0]}").main(arguments[1:])
        return
    parser = argparse.ArgumentParser(prog="zipar", description="Images by ZipAR inside vLLM.")
    parser.add_argument("--version", action="version", version=f"zipar_vllm {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary)
    parser.epilog = "`zipar COMMAND --help` lists a command's options."
    parser.parse_args(arguments)
