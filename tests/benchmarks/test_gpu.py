"""What of ``make bench-gpu`` needs no GPU."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def run(module, *words):
    """In a process of its own: in this one Triton interprets."""
    command = [sys.executable, "-W", "ignore", "-m", module, *words]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_kernel_compiles_for_every_gpu_within_its_bounds():
    """A sample of the variants; ``make bench-gpu`` compiles them all. Compiled for, not run."""
    done = run("benchmarks.gpu.compiled", "--sample", "--processes", "2")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    lines = done.stdout.splitlines()
    for capability in (80, 86, 89, 90, 100, 120):
        for kernel in ("write", "attend", "merge"):
            assert any(line.startswith(f"sm_{capability} {kernel} ") for line in lines)
