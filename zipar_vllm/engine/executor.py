"""Run the one rank of an engine in the engine's own process."""

from __future__ import annotations

from .vllm_api import UniProcExecutor


class OneProcessExecutor(UniProcExecutor):  # type: ignore[misc]
    """The worker in the engine's process, on all cores.

    vLLM would give a CPU worker a process of its own and keep a core free for the engine's: the two
    then poll for each other's messages, and each imports vLLM. vLLM refuses its own name for this
    executor on CPUs (``uni``), because OpenMP has to be told of its threads before the process
    starts; ``zipar`` does that by the environment (:func:`server.cli.environment.set_environment`).
    """
