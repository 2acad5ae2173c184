"""C++ of the project, built once with the machine's own compiler."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
BUILD_SECONDS = 120


@cache
def load_native(source: Path, *flags: str) -> ctypes.CDLL | None:
    """Build a library, or take it from the cache directory; None where no compiler works.

    Args:
        source: C++.
        flags: The compiler's, beside those of all sources.
    """
    try:
        return ctypes.CDLL(str(_build(source, (*FLAGS, *flags))))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("%s could not be built, torch takes over: %s", source.name, error)
        return None


def _build(source: Path, flags: Sequence[str]) -> Path:
    """Compile into the cache directory, under a name that changes with source and machine."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler found (set CXX)")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=30)
    key = hashlib.sha256(source.read_bytes() + version.stdout + _cpu_features())
    key.update(" ".join(flags).encode())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = home / "zipar_vllm" / f"{source.stem}-{key.hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder) / target.name
            command = [compiler, *flags, str(source), "-o", str(built)]
            subprocess.run(command, capture_output=True, check=True, timeout=BUILD_SECONDS)
            built.replace(target)  # atomic: ranks that build at the same time do not collide
    return target


def _cpu_features() -> bytes:
    """Read what ``-march=native`` depends on, so that a shared cache serves unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return b""
    return "".join(sorted({li for li in lines if li.startswith(("flags", "Features"))})).encode()
