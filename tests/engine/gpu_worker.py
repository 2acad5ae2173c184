"""vLLM's GPU worker over CPU tensors.

The worker's own code runs, start to end; what asks for a CUDA device is answered in its place.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from vllm.model_executor.warmup import kernel_warmup, mamba_triton_warmup
from vllm.platforms.cpu import CpuPlatform
from vllm.utils import flashinfer as vllm_flashinfer
from vllm.v1.worker import gpu_worker

from tests.engine.conftest import Engine, start_engine
from tests.recorded import RecordedGraph, recorded_graphs
from zipar_vllm.attention.triton_attention import TritonAttention
from zipar_vllm.decoding import decoder
from zipar_vllm.decoding.batch import StepBatch
from zipar_vllm.decoding.triton_sampler import TritonSampler
from zipar_vllm.engine import model_runner
from zipar_vllm.engine.model_runner import ImageModelRunner
from zipar_vllm.engine.vllm_api import CompilationMode
from zipar_vllm.engine.worker import ZipARWorker

MEMORY = 8 << 30

MINIMAX = "vllm.model_executor.warmup.minimax_m3_msa_warmup"
OTHER_MODELS = (
    "qwen_vl_triton_warmup",
    "kimi_k3_triton_warmup",
    "qwen4_exp_qsa_triton_warmup",
    "b12x_warmup",
    "deepseek_v4_sparse_mla_attention_warmup",
    "flashinfer_sparse_mla_decode_autotune_warmup",
)
"""Warm-ups that import a model, some of them torchvision with it, to see that it is not ours."""


class GPUWorkerOnCPU(ZipARWorker):
    """The GPU worker, but for the device that it would set up.

    Attributes:
        profiled: The steps that memory was measured over, as inputs and lanes.
    """

    profiled: list[tuple[int, int]]

    def init_device(self) -> None:
        self.device = torch.device("cpu")
        gpu_worker.init_worker_distributed_environment(
            self.vllm_config, self.rank, self.distributed_init_method, self.local_rank, "gloo"
        )
        self.init_snapshot = MagicMock(free_memory=MEMORY, total_memory=MEMORY)
        self.requested_memory = MEMORY
        self._init_workspace_and_model_runner()

    def determine_available_memory(self) -> int:
        run, self.profiled = self.model_runner.forward, []

        def record(step: StepBatch) -> torch.Tensor:
            self.profiled.append((step.num_inputs, len(step.attention.lanes)))
            hidden: torch.Tensor = run(step)
            return hidden

        with patch.object(self.model_runner, "forward", record):
            available: int = super().determine_available_memory()
        layers = self.vllm_config.compilation_config.static_forward_context.values()
        assert not any(layer.kv_cache.numel() for layer in layers)
        assert not hasattr(self.model_runner, "decoder")
        return available

    def compile_or_warm_up_model(self) -> Any:
        with as_on_an_h100():
            return super().compile_or_warm_up_model()


@contextlib.contextmanager
def as_on_an_h100() -> Iterator[None]:
    """Warm-up as with an H100 and FlashInfer: what launches kernels is replaced, no more."""
    flashinfer = MagicMock()
    flashinfer.autotuner.AutoTuner.get.return_value._dirty = False
    platform = type(kernel_warmup.current_platform)

    def is_hopper(cls: Any, capability: int, *args: Any) -> bool:
        return capability == 90

    def mamba(runner: Any) -> None:
        assert not mamba_triton_warmup._has_mamba_style_cache(runner)

    with contextlib.ExitStack() as stack:
        modules = {
            "flashinfer": flashinfer,
            "flashinfer.autotuner": flashinfer.autotuner,
            MINIMAX: MagicMock(),
        }
        stack.enter_context(patch.dict(sys.modules, modules))
        stack.enter_context(patch.object(platform, "has_device_capability", classmethod(is_hopper)))
        stack.enter_context(patch.object(kernel_warmup, "has_flashinfer", lambda: True))
        for name in OTHER_MODELS:
            stack.enter_context(patch.object(kernel_warmup, name, lambda *args: None))
        stack.enter_context(patch.object(kernel_warmup, "mamba_triton_warmup", mamba))
        cache = MagicMock(return_value=Path("/nonexistent/autotune.json"))
        stack.enter_context(patch.object(kernel_warmup, "resolve_flashinfer_autotune_file", cache))
        for name in ("autotune", "flashinfer_get_hybrid_num_tokens_buckets"):
            stack.enter_context(patch.object(vllm_flashinfer, name, MagicMock(), create=True))
        stack.enter_context(patch("torch.accelerator.synchronize", lambda *args: None))
        yield


@contextlib.contextmanager
def scheduling_ahead() -> Iterator[None]:
    """As on a GPU: the next step is planned before the result of the last one is known."""
    update = CpuPlatform.check_and_update_config

    def update_and_schedule_ahead(config: Any) -> None:
        update(config)
        config.scheduler_config.async_scheduling = True

    with patch.object(
        CpuPlatform, "check_and_update_config", staticmethod(update_and_schedule_ahead)
    ):
        yield


def start_gpu_worker(path: Path, **overrides: Any) -> Engine:
    """An engine whose worker is the GPU's, and whose steps are scheduled ahead."""
    worker = f"{GPUWorkerOnCPU.__module__}.{GPUWorkerOnCPU.__name__}"
    with scheduling_ahead():
        return start_engine(path, worker_cls=worker, **overrides)


def start_captured(path: Path, **overrides: Any) -> tuple[Engine, list[RecordedGraph]]:
    """An engine like that with the GPU's kernels, all of whose steps a recorder has captured.

    Nothing is profiled or timed, which takes long under Triton's interpreter.

    Returns:
        The engine, and what it has replayed so far.
    """

    def kernel(device: torch.device, dtype: torch.dtype, group: int, size: int, _: int) -> Any:
        return TritonAttention(group, size, dtype, device, part_keys=64)

    uncompiled = {"enforce_eager": False, "compilation_config": {"mode": CompilationMode.NONE}}
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in (
            (decoder, "select_sampler", TritonSampler),
            (model_runner, "select_kernel", kernel),
            (model_runner, "graph_capture", lambda device: contextlib.nullcontext()),
            (ImageModelRunner, "profile_run", lambda self, **options: None),
            (ImageModelRunner, "measure_pass_cost", lambda self: None),
            (CpuPlatform, "graph_pool_handle", lambda self: None),
            (torch.cuda, "empty_cache", lambda: None),
            (torch.cuda, "mem_get_info", lambda device: (MEMORY, MEMORY)),
        ):
            stack.enter_context(patch.object(owner, name, replacement, create=True))
        replayed = stack.enter_context(recorded_graphs())
        return start_gpu_worker(path, **uncompiled, **overrides), replayed
