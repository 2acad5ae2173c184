"""The Muon optimiser for a stack of equal layers, with its matrix work batched.

Muon (K. Jordan et al., 2024) makes each momentum matrix nearly orthogonal before it is applied,
which needs far fewer steps than AdamW here. ``torch.optim.Muon`` does the same matrix by matrix in
bfloat16; with matrices this small, float32 batches take less than half its time on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch


def orthogonalize(batch: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrices; float ``[N, R, C]``."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = batch / (batch.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: torch.Tensor = x.mT if tall else x
    return out


class BatchedMuon(torch.optim.Optimizer):
    """Muon with Nesterov momentum; updates have the size AdamW's would have.

    Args:
        params: Matrices. Those of equal shape, or of equal shape when turned, share a batch.
        lr: Learning rate on AdamW's scale (root mean square of an update: ``0.2 * lr``).
        momentum: Decay of the running gradient.
        weight_decay: Decoupled, as in AdamW.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[torch.Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    rows, columns = param.shape
                    shapes.setdefault((min(rows, columns), max(rows, columns)), []).append(param)
            for params in shapes.values():
                self._update(params, group)

    def _update(self, params: list[torch.Tensor], group: dict[str, float]) -> None:
        updates = []
        for param in params:
            state, grad = self.state[param], param.grad
            assert grad is not None
            momentum = state.setdefault("momentum", torch.zeros_like(param))
            momentum.lerp_(grad, 1 - group["momentum"])
            update = grad.lerp(momentum, group["momentum"])
            updates.append(update.T if param.shape[0] > param.shape[1] else update)
        directions = orthogonalize(torch.stack(updates))
        size = 0.2 * max(params[0].shape) ** 0.5
        for param, direction in zip(params, directions, strict=True):
            param.mul_(1 - group["lr"] * group["weight_decay"])
            turned = direction.T if param.shape[0] > param.shape[1] else direction
            param.add_(turned, alpha=-group["lr"] * size)
