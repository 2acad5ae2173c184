"""The vLLM engine arguments image serving needs, and the check that nobody undid them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zipar_vllm.cpu import has_bfloat16
from zipar_vllm.models.checkpoint import Checkpoint
from zipar_vllm.models.registry import load_spec

from .architectures import ARCHITECTURES
from .vllm_api import CUDAGraphMode, current_platform

SCHEDULER = "zipar_vllm.engine.scheduler.ZipARScheduler"
CPU_WORKER = "zipar_vllm.engine.worker.ZipARCPUWorker"
GPU_WORKER = "zipar_vllm.engine.worker.ZipARWorker"

BLOCK_SIZE = 32
"""KV slots per block: small, because a lane's last block is on average half empty."""

GPU_BLOCK_SIZE = 64
"""The keys that a GPU's kernel reads at a time lie in one block."""

ONE_PROCESS = "zipar_vllm.engine.executor.OneProcessExecutor"
RANKS = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")
"""Arguments that give an engine several ranks, and each of them a process."""

UNSUPPORTED_SIZES = (
    "pipeline_parallel_size",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
)
UNSUPPORTED = (
    "enable_lora",
    "speculative_config",
    "kv_transfer_config",
    "cpu_offload_gb",
    "offload_group_size",
    "enable_sleep_mode",
)
"""Arguments that image decoding does not support: sizes above 1, and what is set at all."""


def engine_arguments(model: str | Path, **wishes: Any) -> dict[str, Any]:
    """Arguments for ``vllm.AsyncEngineArgs`` (or ``vllm.LLM``) that serve images from ``model``.

    Args:
        model: The model's folder or hub id.
        **wishes: Arguments of the caller's, which win; they may not contradict what image decoding
            needs (:func:`check_config`).

    Raises:
        UnusableModelError: the model is no image model of a known family, or lacks a file.
        ValueError: a wish is for what image decoding does not support.
    """
    check_wishes(wishes)
    check_quantisation(model, wishes.get("revision"), wishes.get("quantization"))
    classes = model_classes(model, wishes.get("revision"))
    if classes:
        wishes["model_class_overrides"] = {**classes, **wishes.get("model_class_overrides", {})}
    wishes = {**prompt_arguments(model, wishes.get("revision")), **wishes}
    return {**required_arguments(model), **preferred_arguments(wishes), **wishes}


def check_wishes(wishes: Mapping[str, Any]) -> None:
    """Refuse, before anything is started, what :func:`check_config` would refuse.

    Raises:
        ValueError: names the argument.
    """
    sizes = {name: int(wishes.get(name) or 1) > 1 for name in UNSUPPORTED_SIZES}
    _refuse(sizes | {name: bool(wishes.get(name)) for name in UNSUPPORTED})


def _refuse(unsupported: Mapping[str, bool]) -> None:
    """Raise if any of these options is set."""
    for option, is_set in unsupported.items():
        if is_set:
            raise ValueError(f"{option}: image decoding does not support it, leave it off")


def check_quantisation(model: str | Path, revision: str | None, wish: str | None) -> None:
    """Refuse weights of 8-bit floats on a CPU, where vLLM has no kernels for them.

    Args:
        model: The model's folder or hub id.
        revision: Of the hub id.
        wish: vLLM's ``quantization``; None is what the checkpoint says.

    Raises:
        ValueError: tells what is refused.
        UnusableModelError: it has no ``config.json``.
    """
    own = Checkpoint(model, revision).config.get("quantization_config") or {}
    method = wish or own.get("quant_method") or ""
    if current_platform.is_cpu() and "fp8" in method:
        raise ValueError(f"quantization: got {method}, which vLLM cannot compute on a CPU")


def model_classes(model: str | Path, revision: str | None = None) -> dict[str, str]:
    """The project's own vLLM model class for a checkpoint, by its architecture; {} if none.

    Raises:
        UnusableModelError: it has no ``config.json``.
    """
    architecture = Checkpoint(model, revision).architecture
    target = ARCHITECTURES.get(architecture)
    return {architecture: target} if target else {}


def prompt_arguments(model: str | Path, revision: str | None = None) -> dict[str, bool]:
    """What a checkpoint asks of vLLM where its prompts are not what a tokenizer makes of a text.

    Raises:
        UnusableModelError: it is no image model of a known family, or lacks a file.
    """
    arguments = {}
    if Checkpoint(model, revision).find("tokenizer.json") is None:
        arguments["skip_tokenizer_init"] = True
    if load_spec(model, revision).embeds_prompts:
        arguments["enable_prompt_embeds"] = True
    return arguments


def required_arguments(model: str | Path) -> dict[str, Any]:
    """What image decoding cannot do without, and the block size."""
    arguments: dict[str, Any] = {
        "model": str(model),
        "scheduler_cls": SCHEDULER,
        "worker_cls": CPU_WORKER if current_platform.is_cpu() else GPU_WORKER,
        "enable_prefix_caching": False,
        "block_size": BLOCK_SIZE if current_platform.is_cpu() else GPU_BLOCK_SIZE,
    }
    if not current_platform.is_cpu():
        arguments["attention_config"] = {"backend": "CUSTOM"}
        arguments["compilation_config"] = {"cudagraph_mode": "NONE"}
    return arguments


def preferred_arguments(wishes: Mapping[str, Any]) -> dict[str, Any]:
    """What is fastest on this machine where nothing else is asked for.

    On a CPU that is one process for an engine of one rank, and float32 where bfloat16 would be
    emulated.
    """
    if not current_platform.is_cpu():
        return {}
    arguments: dict[str, Any] = {}
    if all(int(wishes.get(name) or 1) == 1 for name in RANKS):
        arguments["distributed_executor_backend"] = ONE_PROCESS
    if not has_bfloat16():
        arguments["dtype"] = "float32"
    return arguments


def check_config(vllm_config: Any) -> None:
    """Refuse configurations that image decoding does not support.

    Raises:
        ValueError: names the option, what it is and what it has to be.
    """
    parallel, offload = vllm_config.parallel_config, vllm_config.offload_config
    unsupported = {
        "enable_prefix_caching": vllm_config.cache_config.enable_prefix_caching,
        **{name: getattr(parallel, name) > 1 for name in UNSUPPORTED_SIZES},
        "speculative_config": vllm_config.speculative_config is not None,
        "kv_transfer_config": vllm_config.kv_transfer_config is not None,
        "lora_config": vllm_config.lora_config is not None,
        # vLLM's own runner sets it up; here it would do nothing, and nobody would know.
        "cpu_offload_gb": offload.uva.cpu_offload_gb > 0,
        "offload_group_size": offload.prefetch.offload_group_size > 0,
        "enable_sleep_mode": vllm_config.model_config.enable_sleep_mode,
    }
    _refuse(unsupported)
    mode = vllm_config.compilation_config.cudagraph_mode
    if not current_platform.is_cpu() and mode not in (None, CUDAGraphMode.NONE):
        raise ValueError(
            f"compilation_config.cudagraph_mode: {mode.name}, allowed is NONE: steps are captured "
            "whole, and not by vLLM (enforce_eager leaves that out)"
        )


def command_line(model: str | Path) -> list[str]:
    """:func:`required_arguments` as ``vllm serve`` takes them, the model first."""
    words = [str(model)]
    for name, value in required_arguments(model).items():
        flag = name.replace("_", "-")
        if name == "model":
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words
