"""What of ``make bench-gpu`` needs no GPU."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from transformers import AutoConfig

from benchmarks.gpu import engines as engines_benchmark
from benchmarks.gpu import kernel as kernel_benchmark
from benchmarks.gpu import step as step_benchmark
from benchmarks.latency_report import Setting
from benchmarks.shapes import TINY
from tests.interpreted import has_gpu
from tests.recorded import recorded_graphs
from zipar_vllm.attention.triton_attention import TritonAttention
from zipar_vllm.decoding import decoder
from zipar_vllm.decoding.triton_sampler import TritonSampler
from zipar_vllm.models.registry import load_image_model

from .test_latency_report import STOCK

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


def run(module, *words):
    return start("-m", module, *words)


def start(*words):
    """In a process of its own: in this one Triton interprets."""
    command = [sys.executable, "-W", "ignore", *words]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


BARE = """
import importlib.util, sys
blocked = ("vllm", "transformers", "pydantic")
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in blocked else found(name, *rest)
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
from benchmarks.gpu import kernel, step
print(step.ImageParams(window=4, seed=3))
"""


def test_kernel_and_step_need_torch_and_triton_alone():
    done = start("-c", BARE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ImageParams(window=4" in done.stdout


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


def test_a_step_s_benchmark_runs(tmp_path):
    """Tried out on a CPU: a whole image of each window is decoded as elsewhere, captured or not."""
    device = "cuda" if has_gpu() else "cpu"
    words = f"--device {device} --dtype float32 --shapes tiny --images 1 2 --output {tmp_path}"
    failed = step_benchmark.main(words.split())
    records = json.loads((tmp_path / "step.json").read_text())
    assert [(r["images"], r["window"]) for r in records[::2]] == [(1, 8), (1, 4), (2, 8), (2, 4)]
    eager, captured = records[::2], records[1::2]
    assert not any(record["failed"] for record in eager)
    assert all(record["ms"] >= record["host_ms"] > 0 for record in eager)
    # Two lanes; raster order feeds a token, window 4 one of each row under way.
    assert [record["inputs"] for record in eager] == [2, 4, 4, 8]
    if not has_gpu():
        assert failed
        assert all(record["failed"] for record in captured)
    assert "| tiny | 2 | 4 | 8 | eager |" in (tmp_path / "step.md").read_text()


@pytest.mark.skipif(has_gpu(), reason="there the test above measures captured steps")
def test_a_step_s_benchmark_replays_captured_steps(tmp_path, monkeypatch):
    """Recorded on a CPU, with the kernels of a GPU under the interpreter; none is launched else."""

    def kernel(device, dtype, group, size, block_size):
        return TritonAttention(group, size, dtype, device, part_keys=64)

    monkeypatch.setattr(step_benchmark, "select_kernel", kernel)
    monkeypatch.setattr(decoder, "select_sampler", TritonSampler)
    monkeypatch.setattr(step_benchmark, "WARM_UP", 1)
    monkeypatch.setattr(step_benchmark, "STEPS", 2)
    words = f"--device cpu --dtype float32 --shapes tiny --images 1 --output {tmp_path}"
    with recorded_graphs() as replayed:
        for name in ("Stream", "current_stream", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, MagicMock())
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        assert not step_benchmark.main(words.split())
    records = json.loads((tmp_path / "step.json").read_text())
    captured = [record for record in records if record["way"] == "captured"]
    assert [record["window"] for record in captured] == [8, 4]
    assert all(record["ms"] > 0 for record in captured)
    assert len(replayed) == 2 * (1 + 2)


def test_a_step_s_benchmark_goes_on_with_the_next_shape(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(step_benchmark.SHAPES, "emu3", None)
    words = f"--device cpu --dtype float32 --shapes emu3 tiny --images 1 --output {tmp_path}"
    assert step_benchmark.main(words.split())
    assert "emu3: AttributeError" in capsys.readouterr().err
    assert {r["shape"] for r in json.loads((tmp_path / "step.json").read_text())} == {"tiny"}


def test_the_engines_benchmark_has_a_model_for_both(tmp_path):
    """What both engines load but for the weights, which vLLM makes up."""
    engines_benchmark.write_model(tmp_path, TINY, 6, 8)
    model = load_image_model(tmp_path)
    (grid,) = model.spec.grids.values()
    assert (grid.rows, grid.columns, grid.row_terminator) == (6, 8, True)
    prompts = model.prompts("red apple", None, grid, False)
    assert max(prompts.conditional) < TINY.columns - TINY.num_codes
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.hidden_size, config.num_key_value_heads, config.vocab_size) == (128, 2, 200)


def test_the_engines_benchmark_writes_what_one_engine_gave(tmp_path, monkeypatch):
    def run_engine(mode, folder, options):
        if mode == "stock":
            raise RuntimeError("no such engine")
        assert engines_benchmark.parse(options.words).shape == "tiny"
        return [STOCK]

    monkeypatch.setattr(engines_benchmark, "run_engine", run_engine)
    assert engines_benchmark.main(["--shape", "tiny", "--output", str(tmp_path)]) == 1
    assert len(json.loads((tmp_path / "engines.json").read_text())) == 1
    assert "stock failed" in (tmp_path / "engines.md").read_text()
    assert engines_benchmark.settings_of("zipar", 8, [1, 4])[2:] == [
        Setting(4, 1, False),
        Setting(4, 4, False),
    ]
