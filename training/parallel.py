"""Several single-threaded workers instead of one process with several threads.

On a shared machine threads wait for each other many times per layer, and the slowest sets the pace.
Workers meet twice per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True, slots=True)
class Workers:
    """This worker's number and how many there are; alone by default."""

    rank: int = 0
    size: int = 1

    def join(self, port: int) -> None:
        """Meet the others."""
        if self.size > 1:
            distributed.init_process_group(
                "gloo",
                init_method=f"tcp://127.0.0.1:{port}",
                rank=self.rank,
                world_size=self.size,
            )

    def average(self, tensors: Sequence[torch.Tensor], numbers: Sequence[float]) -> list[float]:
        """Average tensors in place, and some numbers with them, over all workers."""
        if self.size == 1:
            return list(numbers)
        flat = torch.cat([t.flatten() for t in tensors] + [torch.tensor(numbers)])
        distributed.all_reduce(flat)
        flat /= self.size
        _scatter(flat, tensors)
        return flat[-len(numbers) :].tolist()

    def share(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give everyone worker k's version of tensors k, k + size, ..., in place."""
        if self.size == 1:
            return
        mine = [
            t.flatten() if i % self.size == self.rank else torch.zeros_like(t).flatten()
            for i, t in enumerate(tensors)
        ]
        flat = torch.cat(mine)
        distributed.all_reduce(flat)
        _scatter(flat, tensors)


@torch.no_grad()
def _scatter(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()
