"""The machine figures are measured on: what it is, what it may use, and how busy it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

import psutil
import torch

from zipar_vllm import cpu

AVX2 = "avx2"
INSTRUCTIONS = (AVX2,)
"""What a processor can be held to, so that it stands for one that has no more."""

_FOLDER = Path(__file__).resolve().parent
_CACHE = Path.home() / ".cache" / "zipar_vllm-avx2"


def machine_name(instructions: str | None = None) -> str:
    """The GPU if there is one, the processor, what it has for matrices, and the cores it may use.

    Args:
        instructions: What this process was held to, one of :data:`INSTRUCTIONS`.
    """
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return gpu + cpu.describe() + (f" (held to {instructions.upper()})" if instructions else "")


def environment_for(instructions: str | None) -> dict[str, str]:
    """This process's environment, changed so that a child uses no better instructions than these.

    Every library that picks its kernels by processor has a switch of its own; torch's and vLLM's
    flags are changed by ``avx2/sitecustomize.py``, what is compiled is by ``avx2/c++``. What was
    compiled for the whole processor is kept apart.
    """
    environment = dict(os.environ)
    if instructions is None:
        return environment
    if shutil.which("g++") is None:
        raise RuntimeError(f"--instructions {instructions} needs g++")
    paths = [str(_FOLDER / AVX2), str(_FOLDER.parent), environment.get("PYTHONPATH", "")]
    return environment | {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "CXX": str(_FOLDER / AVX2 / "c++"),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "XDG_CACHE_HOME": str(_CACHE),
        "VLLM_CACHE_ROOT": str(_CACHE / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(_CACHE / "inductor"),
    }


def busy_sentence(busy_cores: float) -> str:
    """What stands beside figures: how busy others kept the machine."""
    return f"Other processes kept {busy_cores:.2f} of its cores busy meanwhile."


class Bystanders:
    """How many cores other processes used, from the moment it is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._then = self._seconds()

    def busy_cores(self) -> float:
        """Mean number of cores, of all the machine's, used by neither this process nor a child."""
        spent = self._seconds() - self._then
        return round(max(0.0, spent / (time.perf_counter() - self._start)), 2)

    def _seconds(self) -> float:
        """Processor seconds of all processes but this and its children, since the machine began."""
        every = psutil.cpu_times()
        me = psutil.Process()
        own = 0.0
        for process in [me, *me.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                own += times.user + times.system + times.children_user + times.children_system
        return float(every.user + every.nice + every.system + every.irq + every.softirq - own)
