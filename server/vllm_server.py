"""Every name of vLLM's API server that this one uses, in one place and nowhere else.

vLLM is imported inside the functions: the command line answers ``--help`` and bad options without
it. ``tests/server/test_vllm_server.py`` checks the names against the installed version.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any


def run(
    arguments: list[str],
    complete: Callable[[argparse.Namespace], str | None],
    engine_context: BaseContext | None = None,
) -> None:
    """Do what ``vllm serve`` does, without its command line, which the CPU package cannot start.

    Args:
        arguments: As ``vllm serve`` takes them.
        complete: Fills in what the parsed arguments leave open; says what is wrong with them, None
            if nothing is, and the process then exits with 2.
        engine_context: Starts the engine's process; vLLM's own choice if None.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine import utils as engine_utils

    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(prog="zipar serve"))
    options = parser.parse_args(arguments)
    if problem := complete(options):
        parser.exit(2, f"{parser.prog}: error: {problem}\n")  # the usage is hundreds of lines
    configure_logging_from_args(options)
    if engine_context is not None:
        # vLLM asks this name, and no argument, in which way to start its engine's process.
        engine_utils.get_mp_context = lambda: engine_context
    command = ServeSubcommand()
    command.validate(options)
    command.cmd(options)


def is_started(state: Any) -> bool:
    """Whether the HTTP server of an application's ``state`` accepts connections."""
    return hasattr(state, "server") and state.server.started


def served_names(state: Any) -> list[str]:
    """The names that the model is served as."""
    return [path.name for path in state.openai_serving_models.base_model_paths]


async def list_models(state: Any) -> dict[str, Any]:
    """The body of vLLM's ``GET /v1/models``."""
    models = await state.openai_serving_models.show_available_models()
    return models.model_dump()
