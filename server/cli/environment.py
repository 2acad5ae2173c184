"""What a process that will run vLLM needs before vLLM is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def set_environment() -> None:
    """Choose our plugins, keep vLLM from reporting its use, and preload OpenMP.

    May replace the process by itself: call it before anything else is done.
    """
    os.environ.setdefault("VLLM_PLUGINS", "zipar,zipar_images")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    _preload_openmp()


def _preload_openmp() -> None:
    """Run again with Intel's OpenMP preloaded where it is installed: vLLM on CPU is faster so."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    loaded = os.environ.get("LD_PRELOAD", "")
    if library.exists() and library.name not in loaded and "ZIPAR_NO_PRELOAD" not in os.environ:
        os.environ["LD_PRELOAD"] = f"{library}:{loaded}".rstrip(":")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
