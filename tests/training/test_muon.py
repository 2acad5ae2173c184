"""The optimiser."""

from __future__ import annotations

import torch

from training.muon import BatchedMuon, orthogonalize


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, 32, 64)))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_muon_steps_downhill() -> None:
    torch.manual_seed(0)
    wide, tall = torch.randn(8, 16, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    optimizer = BatchedMuon([wide, tall], lr=0.05)
    losses = []
    for _ in range(30):
        loss = (wide @ tall).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
