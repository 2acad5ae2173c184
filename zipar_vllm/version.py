"""Which versions there are: the project's own, and the vLLM that it runs on.

Asked before anything else of vLLM's is imported, so that an unsupported vLLM, whose names may have
moved, is told of by its version and not by an ``ImportError``.
"""

from __future__ import annotations

import re
from importlib.metadata import version

__version__ = version("zipar-vllm")

SUPPORTED_VLLM = "0.32"


def check_vllm_version() -> None:
    """Refuse to run on a vLLM that the engine was not written for.

    Raises:
        RuntimeError: says which version was found and which is needed.
    """
    try:
        from vllm import __version__ as found
    except ImportError as error:
        raise RuntimeError(f"zipar_vllm needs vLLM {SUPPORTED_VLLM}.x, found none") from error
    release = re.match(r"\d+\.\d+", found)
    if release is None or release.group() != SUPPORTED_VLLM:
        raise RuntimeError(f"zipar_vllm needs vLLM {SUPPORTED_VLLM}.x, found {found}")
