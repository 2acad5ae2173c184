"""What a process that will run vLLM needs before vLLM is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from zipar_vllm.cpu import num_cores


def set_environment(quiet: bool = False) -> None:
    """Choose our plugins, keep vLLM from reporting its use, and set OpenMP up.

    May replace the process by itself: call it before anything else is done or imported.

    Args:
        quiet: Whether vLLM and its libraries tell errors only, of all they tell at start.
    """
    defaults = {
        "VLLM_PLUGINS": "zipar,zipar_images",
        "VLLM_NO_USAGE_STATS": "1",
        # The engine computes on all cores, from its own process (zipar_vllm.engine.executor).
        "OMP_NUM_THREADS": str(num_cores()),
        # Milliseconds that threads spin for more work: less than between two images.
        "KMP_BLOCKTIME": "5",
    }
    if quiet:
        defaults |= {"VLLM_LOGGING_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    _preload_openmp()


def say(command: str, text: str) -> None:
    """Tell whoever waits for a command what for."""
    print(f"zipar {command}: {text}", file=sys.stderr, flush=True)


def starting(dtype: str | None) -> str:
    """What is said when the engine starts: in which dtype; None and "auto" leave it to us."""
    # Imports vLLM.
    from zipar_vllm.engine.arguments import preferred_arguments

    chosen = preferred_arguments({}).get("dtype")
    if dtype in (None, "auto"):
        dtype = chosen or "the model's dtype"
    why = " (this CPU has no instructions for bfloat16)" if dtype == chosen else ""
    return f"starting the engine in {dtype}{why}"


def _preload_openmp() -> None:
    """Run again with Intel's OpenMP preloaded where it is installed: vLLM on CPU is faster so."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    loaded = os.environ.get("LD_PRELOAD", "")
    if library.exists() and library.name not in loaded and "ZIPAR_NO_PRELOAD" not in os.environ:
        os.environ["LD_PRELOAD"] = f"{library}:{loaded}".rstrip(":")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
