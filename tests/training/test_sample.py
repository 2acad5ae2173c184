"""The training-side sampler against one pass under ZipAR's mask, and the exported weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from training.export import llama_weights
from training.masks import batch_mask
from training.model import Decoder, DecoderConfig
from training.muon import BatchedMuon, orthogonalize
from training.sample import Layout, Sampling, feed_plan, pad_prompts, sample

LAYOUT = Layout(prefix=(1,), suffix=(2,), eol=3, image_start=64)
PROMPTS = [[7, 8, 9], [10]]


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(128, 64, (4, 4, 2), hidden=128, layers=2, ffn=64)
    model = Decoder(config)
    for parameter in model.lm_head.parameters():
        torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.parametrize("window", [1, 4, 24])
def test_sampling_is_what_one_pass_predicts(model: Decoder, window: int) -> None:
    codes = sample(model, PROMPTS, LAYOUT, Sampling(window=window, guidance=1.0))
    assert len(codes.unique()) > 8, "a constant picture would prove nothing"
    length = max(map(len, PROMPTS)) + 2
    ids, pads = pad_prompts(PROMPTS, LAYOUT, length)
    rows = F.pad(codes + LAYOUT.image_start, (0, 1), value=LAYOUT.eol)
    with torch.no_grad():
        hidden = model(torch.cat([ids, rows.flatten(1)], 1), batch_mask([window] * 2, pads, length))
        queries = hidden[:, length - 1 : length + 599].unflatten(1, (24, 25))[:, :, :24]
        predicted = model.image_logits(queries).argmax(-1)
    assert torch.equal(predicted, codes)


@pytest.mark.parametrize("window", [1, 2, 4, 8, 24])
def test_steps_are_the_papers(window: int) -> None:
    assert len(feed_plan(window)) + 1 == 24 + 23 * window


def test_seeds_differ_and_repeat(model: Decoder) -> None:
    pictures = [
        sample(model, PROMPTS, LAYOUT, Sampling(8, 1.5, temperature=1.0, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_exported_tables_hold_the_shared_rows(model: Decoder) -> None:
    weights = llama_weights(model)
    table = weights["model.embed_tokens.weight"].float()
    code = 1 + 4 * 2 + 16 * 1
    expected = model.embed_tokens.weight[64 + code] + model.embed_tokens.shared[
        [1, 4 + 2, 8 + 1]
    ].sum(0)
    torch.testing.assert_close(table[64 + code], expected.detach(), rtol=1e-2, atol=1e-2)
    assert weights["lm_head.weight"][:64].abs().max() == 0
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}


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
