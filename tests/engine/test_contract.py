"""What the project relies on in vLLM's internals, checked against the installed version."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
from vllm.platforms import cpu

from zipar_vllm.engine import vllm_api
from zipar_vllm.engine.kv_cache import ImageKVCacheManager
from zipar_vllm.engine.messages import ImageSchedulerOutput
from zipar_vllm.engine.model_runner import ImageModelRunner
from zipar_vllm.engine.scheduler import ZipARScheduler


def names_used_on_runner(source: str) -> set[str]:
    """Attributes read from ``self.model_runner`` or ``model_runner`` in a worker's source."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("model_runner"):
            names.add(node.attr)
    return names


def names_of_runner() -> set[str]:
    source = ast.parse(inspect.getsource(ImageModelRunner))
    assigned = {
        node.attr
        for node in ast.walk(source)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
    }
    return set(dir(ImageModelRunner)) | assigned


@pytest.mark.parametrize("worker", [vllm_api.Worker, vllm_api.CPUWorker])
def test_runner_has_every_name_its_worker_uses(worker: type) -> None:
    used = names_used_on_runner(Path(inspect.getfile(worker)).read_text())
    assert "warming_up_model" in used or "execute_model" in used
    assert used - names_of_runner() == set()


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


def test_scheduler_output_only_adds_what_it_says() -> None:
    ours = set(ImageSchedulerOutput.__dataclass_fields__)
    theirs = set(vllm_api.SchedulerOutput.__dataclass_fields__)
    assert ours - theirs == {"new_jobs", "stepping", "passes"}


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
