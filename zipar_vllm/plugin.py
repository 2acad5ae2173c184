"""Entry point of the vLLM plugin."""

from __future__ import annotations

from zipar_vllm.version import check_vllm_version


def register() -> None:
    """Make sure that this vLLM is one the project supports.

    vLLM calls this in every process before it builds anything (``vllm.general_plugins``). The
    scheduler and the worker are named by :func:`zipar_vllm.engine.arguments.engine_arguments`,
    and the worker registers the attention backend, so that an engine started without those
    arguments in the same environment stays stock vLLM.

    Raises:
        RuntimeError: an unsupported version of vLLM is installed.
    """
    check_vllm_version()
