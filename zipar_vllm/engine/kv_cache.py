"""KV cache admission: an image is told every block it will ever need, or waits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zipar_vllm.decoding.policy import IntArray

from .admission import FREE, BlockLedger
from .vllm_api import KVCacheBlocks, KVCacheManager, Request


class ImageKVCacheManager:
    """vLLM's KV cache manager, with allocation by what an image is going to need, and when.

    The first allocation finds all blocks of all lanes or nothing, so a running image never asks
    again: nothing is preempted, and one ``free`` returns both lanes. A block that passes from one
    image to another counts as shared by them until the first one frees it.

    Args:
        inner: vLLM's manager; whatever is not about allocation is left to it.
        ledger: Who holds which block, and who waits for it.
        block_steps: The first step of a request that writes to each of its blocks.
        steps_left: Of the running images of which it is known, the steps until each ends.
        may_start: Whether the step has room for one more image like this request.
        started: Is told of each request that was admitted.
    """

    def __init__(
        self,
        inner: KVCacheManager,
        ledger: BlockLedger,
        *,
        block_steps: Callable[[Request], IntArray],
        steps_left: Callable[[], Mapping[str, int]],
        may_start: Callable[[Request], bool],
        started: Callable[[Request], None],
    ) -> None:
        self._inner = inner
        self._ledger = ledger
        self._block_steps = block_steps
        self._steps_left = steps_left
        self._may_start = may_start
        self._started = started
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
            The blocks that were free, or None while the image does not fit.
        """
        if self._inner.get_blocks(request.request_id).blocks[0]:
            return self._inner.empty_kv_cache_blocks
        if not self._may_start(request):
            return None
        pool, steps = self._inner.block_pool, self._block_steps(request)
        found = self._ledger.find(steps, pool.get_num_free_blocks(), self._steps_left())
        if found is None:
            return None
        # Those of the prompt are among them, as no other image ends before this step.
        slots = int((found == FREE).sum()) * self._block_size
        kwargs["num_lookahead_tokens"] = slots - num_new_tokens
        new = self._inner.allocate_slots(request, num_new_tokens, **kwargs)
        if new is not None:
            self._hold(request.request_id, steps, found)
            self._started(request)
        return new

    def _hold(self, request_id: str, steps: IntArray, found: IntArray) -> None:
        """Put the blocks that the image inherits between those that it was just given."""
        pool, (manager,) = self._inner.block_pool, self._inner.coordinator.single_type_managers
        blocks = manager.req_to_blocks[request_id]
        given = iter(blocks.copy())
        blocks[:] = [next(given) if own == FREE else pool.blocks[own] for own in found.tolist()]
        pool.touch([pool.blocks[own] for own in found.tolist() if own != FREE])
        self._ledger.admit(request_id, steps, [block.block_id for block in blocks])
