"""What of ``make bench-gpu`` needs no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import kernel as kernel_benchmark
from tests.interpreted import has_gpu

ROOT = Path(__file__).parent.parent.parent


def run(module, *words):
    """In a process of its own: in this one Triton interprets."""
    command = [sys.executable, "-W", "ignore", "-m", module, *words]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_kernels_compile_for_every_gpu_within_their_bounds():
    """A sample of the variants; ``make bench-gpu`` compiles them all. Compiled for, not run."""
    done = run("benchmarks.gpu.compiled", "--sample", "--processes", "2")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    lines = done.stdout.splitlines()
    for capability in (80, 86, 89, 90, 100, 120):
        for kernel in ("write", "attend", "merge", "sample_tokens"):
            assert any(line.startswith(f"sm_{capability} {kernel} ") for line in lines)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_kernel_s_benchmark_runs(tmp_path):
    """Tried out on a CPU, under the interpreter: what it compares gives the same numbers."""
    device = "cuda" if has_gpu() else "cpu"
    words = f"--device {device} --dtype float32 --output {tmp_path} --lanes 2 --rows 6 --columns 12"
    words += " --window 3 --heads 4 --kv-heads 2 --head-size 64"
    failed = kernel_benchmark.main(words.split())
    listing = json.loads((tmp_path / "kernel.json").read_text())
    records = {record["what"]: record for record in listing}
    needs_gpu = [] if has_gpu() else ["this kernel, captured"]
    assert failed == len(needs_gpu)
    assert [what for what, record in records.items() if record["failed"]] == needs_gpu
    for what in ("this kernel", "SDPA, the same mask", "FlexAttention, the same mask"):
        assert records[what]["largest_error"] < 1e-5, what
    assert records["this kernel"]["queries"] == 4
    assert "| 2 | this kernel |" in (tmp_path / "kernel.md").read_text()
