"""KV cache admission: an image gets every block it will ever need, or waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .vllm_api import KVCacheBlocks, KVCacheManager, Request


class ImageKVCacheManager:
    """vLLM's KV cache manager, with allocation on an image's exact demand.

    The first allocation takes all blocks of all lanes or nothing, so a running image never asks
    again: nothing is preempted, and one ``free`` returns both lanes.

    Args:
        inner: vLLM's manager; whatever is not about allocation is left to it.
        demand: Blocks a request needs in all.
        may_start: Whether the step has room for one more image like this request.
    """

    def __init__(
        self,
        inner: KVCacheManager,
        demand: Callable[[Request], int],
        may_start: Callable[[Request], bool],
    ) -> None:
        self._inner = inner
        self._demand = demand
        self._may_start = may_start
        # A request holds two lanes, so more slots than one sequence of the longest length.
        self._block_size = inner.kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        inner.max_model_len = 2 * (inner.max_model_len + self._block_size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def allocate_slots(
        self, request: Request, num_new_tokens: int, **kwargs: Any
    ) -> KVCacheBlocks | None:
        """Allocate the whole image at its first chunk; later chunks and steps need nothing.

        Returns:
            The blocks that are new, or None while the image does not fit.
        """
        if self._inner.get_blocks(request.request_id).blocks[0]:
            return self._inner.empty_kv_cache_blocks
        if not self._may_start(request):
            return None
        slots = self._demand(request) * self._block_size
        kwargs["num_lookahead_tokens"] = slots - num_new_tokens
        return self._inner.allocate_slots(request, num_new_tokens, **kwargs)
