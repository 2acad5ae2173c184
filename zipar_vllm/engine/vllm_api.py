"""Every unstable vLLM name the engine uses, imported in one place and nowhere else.

vLLM's engine internals change between minor versions. Whoever moves the project to another
version changes this file and ``server/vllm_server.py`` first, then what the contract tests report.
"""

from __future__ import annotations

from vllm import LLM, SamplingParams
from vllm.config import CompilationMode, CUDAGraphMode, VllmConfig, get_layers_from_vllm_config
from vllm.distributed.parallel_state import graph_capture
from vllm.engine.protocol import EngineClient
from vllm.forward_context import set_forward_context
from vllm.inputs import EmbedsPrompt, TokensPrompt
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader import get_model
from vllm.model_executor.warmup.jit_warmup import JitWarmupRegistry
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    MultipleOf,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups, get_kv_cache_groups
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheLayout, KVCacheSpec
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import AsyncModelRunnerOutput, LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.utils import (
    allocate_kv_cache,
    bind_kv_cache_to_layers,
    clear_layer_kv_caches,
)

__all__ = [
    "LLM",
    "AsyncModelRunnerOutput",
    "AsyncScheduler",
    "AttentionBackend",
    "AttentionBackendEnum",
    "AttentionImpl",
    "AttentionLayerBase",
    "AttentionMetadataBuilder",
    "CPUWorker",
    "CUDAGraphMode",
    "CompilationMode",
    "EmbedsPrompt",
    "EngineClient",
    "EngineCoreOutput",
    "EngineCoreOutputs",
    "EngineCoreProc",
    "EngineDeadError",
    "EngineGenerateError",
    "JitWarmupRegistry",
    "KVCacheBlocks",
    "KVCacheConfig",
    "KVCacheLayout",
    "KVCacheManager",
    "KVCacheSpec",
    "LogprobsLists",
    "ModelRunnerOutput",
    "MultipleOf",
    "NewRequestData",
    "Request",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "SchedulerOutput",
    "SchedulerStats",
    "StatLoggerBase",
    "TokensPrompt",
    "UniProcExecutor",
    "VllmConfig",
    "Worker",
    "allocate_kv_cache",
    "bind_kv_cache_to_layers",
    "clear_layer_kv_caches",
    "current_platform",
    "get_kv_cache_config_from_groups",
    "get_kv_cache_groups",
    "get_kv_cache_spec",
    "get_layers_from_vllm_config",
    "get_model",
    "graph_capture",
    "register_backend",
    "set_forward_context",
]
