"""Whether an engine can ever hold an image: asked before it is queued, and by the scheduler."""

from __future__ import annotations

from typing import Any

from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.errors import ImageTooLargeError


def usable_blocks(vllm_config: Any) -> int:
    """KV blocks for images, once the engine has sized its KV cache: one is vLLM's null block."""
    return int(vllm_config.cache_config.num_gpu_blocks) - 1


def check_capacity(job: ImageJob, vllm_config: Any) -> None:
    """Raise if the image can never fit, however long it waits.

    Args:
        job: The image.
        vllm_config: vLLM's configuration, once the engine has sized its KV cache.

    Raises:
        ImageTooLargeError: says what the image needs and what there is.
    """
    cache = vllm_config.cache_config
    needed = job.num_blocks(cache.block_size)
    usable = usable_blocks(vllm_config)
    if needed > usable:
        raise ImageTooLargeError(f"the image needs {needed} KV blocks, the cache has {usable}")
    budget = vllm_config.scheduler_config.max_num_batched_tokens
    if job.max_inputs > budget:
        raise ImageTooLargeError(
            f"a step of the image has up to {job.max_inputs} inputs, "
            f"max_num_batched_tokens is {budget}"
        )
    longest = vllm_config.model_config.max_model_len
    if job.num_tokens > longest:
        raise ImageTooLargeError(
            f"the image takes {job.num_tokens} tokens with its prompts, max_model_len is {longest}"
        )
