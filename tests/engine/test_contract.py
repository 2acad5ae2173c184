"""What the project relies on in vLLM's internals, checked against the installed version."""

from __future__ import annotations

import ast
import hashlib
import inspect
from pathlib import Path

import pytest
import vllm
from vllm.config import ParallelConfig
from vllm.model_executor.layers.attention import attention
from vllm.model_executor.warmup import kernel_warmup, mamba_triton_warmup
from vllm.platforms import cpu
from vllm.v1.core import block_pool, single_type_kv_cache_manager
from vllm.v1.core.sched import async_scheduler, scheduler
from vllm.v1.engine import core

from zipar_vllm.engine import vllm_api, worker
from zipar_vllm.engine.attention_backend import ZipARAttentionBackend, ZipARAttentionImpl
from zipar_vllm.engine.kv_cache import ImageKVCacheManager
from zipar_vllm.engine.messages import ImageSchedulerOutput
from zipar_vllm.engine.model_runner import ImageModelRunner
from zipar_vllm.engine.scheduler import ZipARScheduler

CUDA_WHEEL = {
    "model_executor/layers/attention/attention.py": "bde77677fd0e95ea",
    "model_executor/warmup/kernel_warmup.py": "5eb35e459feaa565",
    "model_executor/warmup/mamba_triton_warmup.py": "63cc5af797ecc413",
    "platforms/cuda.py": "18ae1dfc34848afc",
    "v1/attention/backend.py": "981ec1fc4b84d085",
    "v1/attention/selector.py": "30cd098367da4795",
    "v1/core/block_pool.py": "6d1e0d89b43e3b2a",
    "v1/core/kv_cache_manager.py": "d08315437c6b0704",
    "v1/core/kv_cache_utils.py": "af4164bca819f1cd",
    "v1/core/sched/async_scheduler.py": "38d296e77e4d612e",
    "v1/core/sched/scheduler.py": "d9a39870286c424c",
    "v1/engine/core.py": "458fd729771681b1",
    "v1/outputs.py": "40b3aec867bca3a4",
    "v1/worker/gpu/attn_utils.py": "4ff080ab9c815037",
    "v1/worker/gpu_worker.py": "e970aa29a738aa15",
    "v1/worker/utils.py": "85b23497017e5db0",
    "v1/worker/worker_base.py": "71e3047f7b53b3b4",
}
"""How the SHA-256 of these files begins in vllm-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl, which
is for CUDA. Of 2,642 Python files that both wheels have, three differ from those for CPUs:
``_version.py``, ``platforms/__init__.py`` and ``utils/cpu_triton_utils.py``.
"""


def names_used_on_runner(source: str) -> set[str]:
    """Attributes read from ``self.model_runner`` or ``model_runner`` in a worker's source."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("model_runner"):
            names.add(node.attr)
    return names


def names_used_on(parameter: str, function: object) -> set[str]:
    """Attributes that a function's source reads from one of its parameters."""
    tree = ast.parse(inspect.getsource(function))  # type: ignore[arg-type]
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == parameter
    }


def names_of(ours: type) -> set[str]:
    """Attributes that a class has, or sets on its objects."""
    return set(dir(ours)) | names_used_on("self", ours)


def names_of_runner() -> set[str]:
    return names_of(ImageModelRunner)


@pytest.mark.parametrize("file", CUDA_WHEEL)
def test_what_is_read_here_is_what_a_gpu_runs(file: str) -> None:
    """The wheels for CPUs and for CUDA have the same source of all that a GPU's start relies on."""
    source = (Path(vllm.__path__[0]) / file).read_bytes()
    assert hashlib.sha256(source).hexdigest().startswith(CUDA_WHEEL[file])


@pytest.mark.parametrize("theirs", [vllm_api.Worker, vllm_api.CPUWorker])
def test_runner_has_every_name_its_worker_uses(theirs: type) -> None:
    used = names_used_on_runner(Path(inspect.getfile(theirs)).read_text())
    assert "warming_up_model" in used or "execute_model" in used
    assert used - names_of_runner() == set()


def test_runner_has_every_name_that_a_gpu_worker_s_warm_up_uses() -> None:
    """On CUDA: for every model, and where FlashInfer is installed, as vLLM's image has it."""
    used = names_used_on("worker.model_runner", kernel_warmup.kernel_warmup)
    assert {"attn_groups", "jit_warmup_registry", "kv_cache_config"} <= used
    used |= names_used_on("runner", kernel_warmup._flashinfer_autotune_token_counts)
    used |= names_used_on("runner", mamba_triton_warmup._has_mamba_style_cache)
    assert used - names_of_runner() == set()


def test_gpu_worker_does_not_warm_up_vllm_s_second_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """That would feed it text requests."""
    gpu = Path(inspect.getfile(vllm_api.Worker)).read_text()
    assert "if self.use_v2_model_runner:" in gpu.partition("warmup_kernels(")[0][-300:]

    def init(self: object, *args: object) -> None:
        self.use_v2_model_runner = True  # type: ignore[attr-defined]

    monkeypatch.setattr(vllm_api.Worker, "__init__", init)
    monkeypatch.setattr(worker, "check_config", lambda config: None)
    monkeypatch.setattr(worker.attention_backend, "register", lambda: None)
    assert worker.ZipARWorker(None).use_v2_model_runner is False


def test_layers_find_all_that_they_ask_of_the_attention_backend() -> None:
    used = names_used_on("self.attn_backend", attention)
    assert {"customize_spec", "get_impl_cls"} <= used
    assert used - names_of(ZipARAttentionBackend) == set()
    used = names_used_on("self.impl", attention)
    assert {"forward", "num_kv_heads"} <= used
    assert used - names_of(ZipARAttentionImpl) == set()
    assert ZipARAttentionBackend.forward_includes_kv_cache_update  # else it would be asked for


def test_nobody_builds_metadata_but_the_runner() -> None:
    """Its builder is vLLM's abstract one: only vLLM's own runners make objects of it."""
    for module in (core, scheduler, inspect.getmodule(vllm_api.Worker)):
        assert "get_builder_cls" not in inspect.getsource(module)  # type: ignore[arg-type]


def test_scheduler_and_core_find_all_that_they_ask_of_the_kv_cache_manager() -> None:
    used = names_used_on("self.kv_cache_manager", scheduler)
    used |= names_used_on("self.kv_cache_manager", async_scheduler)
    used |= names_used_on("self.scheduler.kv_cache_manager", core)
    assert {"allocate_slots", "free", "take_events"} <= used
    # What it does not have itself it takes from vLLM's.
    assert used - names_of(ImageKVCacheManager) - names_of(vllm_api.KVCacheManager) == set()


@pytest.mark.parametrize(
    "method",
    [
        "add_request",
        "schedule",
        "_update_after_schedule",
        "update_from_output",
        "_update_request_with_output",
        "_handle_blocked_waiting_request",
        "_free_request",
    ],
)
def test_scheduler_overrides_keep_signatures(method: str) -> None:
    ours = inspect.signature(getattr(ZipARScheduler, method))
    theirs = inspect.signature(getattr(vllm_api.AsyncScheduler, method))
    assert list(ours.parameters) == list(theirs.parameters)


def test_scheduler_attributes_exist() -> None:
    source = inspect.getsource(inspect.getmodule(vllm_api.AsyncScheduler.__mro__[1]))
    for name in ("grammar_compile_error_reqs", "max_num_scheduled_tokens", "kv_cache_manager"):
        assert f"self.{name}" in source


def test_workers_are_told_what_the_project_adds_and_how_many_servers_there_are() -> None:
    assert vllm_api.VllmConfig.__dataclass_fields__["additional_config"].init
    assert ParallelConfig()._api_process_count == 1


def test_request_attributes_exist() -> None:
    source = inspect.getsource(vllm_api.Request)
    for name in ("num_output_placeholders", "num_computed_tokens", "is_prefill_chunk"):
        assert f"self.{name}" in source


def test_allocation_takes_lookahead() -> None:
    parameters = inspect.signature(vllm_api.KVCacheManager.allocate_slots).parameters
    assert "num_lookahead_tokens" in parameters
    assert list(parameters)[:3] == ["self", "request", "num_new_tokens"]
    assert list(inspect.signature(ImageKVCacheManager.allocate_slots).parameters)[:3] == [
        "self",
        "request",
        "num_new_tokens",
    ]


def test_blocks_may_be_shared_and_told_by_their_ids() -> None:
    """What an inherited block needs of vLLM's pool, and where a request's blocks stand."""
    pool = inspect.getsource(vllm_api.KVCacheManager) + inspect.getsource(block_pool.BlockPool)
    for name in ("block_pool", "coordinator", "blocks"):
        assert f"self.{name}" in pool
    assert list(inspect.signature(block_pool.BlockPool.touch).parameters) == ["self", "blocks"]
    assert "block.ref_cnt -= 1" in inspect.getsource(block_pool.BlockPool.free_blocks)
    manager = inspect.getsource(single_type_kv_cache_manager.SingleTypeKVCacheManager)
    assert "self.req_to_blocks: defaultdict[str, list[KVCacheBlock]]" in manager


def test_scheduler_output_only_adds_what_it_says() -> None:
    ours = set(ImageSchedulerOutput.__dataclass_fields__)
    theirs = set(vllm_api.SchedulerOutput.__dataclass_fields__)
    assert ours - theirs == {"new_jobs", "stepping", "passes", "drafts"}


def test_forward_context_takes_metadata_and_slot_mapping() -> None:
    parameters = inspect.signature(vllm_api.set_forward_context).parameters
    assert {"attn_metadata", "vllm_config", "num_tokens", "slot_mapping"} <= set(parameters)


def test_one_process_holds_engine_and_worker() -> None:
    source = inspect.getsource(vllm_api.UniProcExecutor)
    assert "self.driver_worker" in source
    assert "run_engine_core" in vars(vllm_api.EngineCoreProc)


def test_a_cpu_refuses_the_executor_by_its_own_name_only() -> None:
    source = inspect.getsource(cpu)
    assert 'parallel_config.distributed_executor_backend == "uni"' in source
