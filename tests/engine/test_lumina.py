"""Lumina-mGPT in the real engine: what vLLM's layers and our loading of its weights add."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cases import assert_diverse
from tests.checkpoints.lumina import LuminaAsCausalModel, generate
from zipar_vllm.core.grid import Grid
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import PreparedImage, prepare_images

from .conftest import Engine, assert_batch_is_the_oracles

pytestmark = pytest.mark.engine


@pytest.fixture(scope="session")
def lumina_engine(family_engines: Callable[[str], Engine]) -> Engine:
    return family_engines("lumina")


def image_of(path: Path, **options: Any) -> PreparedImage:
    return prepare_images(load_image_model(path), "a red apple.", ImageOptions(**options), [7])[0]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_raster_order_is_transformers(lumina_engine: Engine, guidance: float) -> None:
    engine = lumina_engine
    image = image_of(
        engine.path, size="160x96", window=10, temperature=0.0, guidance_scale=guidance
    )
    tokens = engine.generate(image).tokens
    assert_diverse(tokens)
    oracle = LuminaAsCausalModel(engine.path)
    assert tokens == generate(oracle, image.prompts, rows=6, columns=10, guidance=guidance)


def test_sizes_and_windows_in_a_batch(lumina_engine: Engine) -> None:
    """Guided and not, greedy and sampled."""
    engine, oracle = lumina_engine, LuminaAsCausalModel(lumina_engine.path)
    images = {
        f"{size} {guidance}": image_of(
            engine.path,
            size=size,
            window=window,
            guidance_scale=guidance,
            temperature=float(guidance != 1),
            negative_prompt="dogs" if window == 4 else None,
        )
        for size, window in {"128x128": 1, "160x96": 4, "64x256": 4, "128x96": 8}.items()
        for guidance in (1.0, 4.0)
    }
    assert_batch_is_the_oracles(engine, images, oracle)


def test_the_published_size_takes_753_steps(lumina_engine: Engine) -> None:
    image = image_of(lumina_engine.path, window=8, guidance_scale=1.0)
    params, grid = replace(image.params, window=15), Grid(48, 48, row_terminator=True)
    got = lumina_engine.generate(replace(image, params=params, grid=grid))
    assert (len(got.tokens), got.steps) == (48 * 49, 753)


@pytest.mark.parametrize(("total", "ranks"), [(4, 1), (4, 2), (4, 4), (2, 4)])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_rank_norms_its_own_heads(
    monkeypatch: pytest.MonkeyPatch, total: int, ranks: int, shards: int
) -> None:
    from zipar_vllm.engine.architectures import lumina

    stored = torch.arange(shards * 3.0).view(shards, 3)
    whole = [stored[head * shards // total] for head in range(total)]
    monkeypatch.setattr(lumina, "get_tensor_model_parallel_world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(lumina, "get_tensor_model_parallel_rank", lambda rank=rank: rank)
        heads = max(total // ranks, 1)
        norm = lumina.HeadNorm(total, heads, 3)
        norm.weight.weight_loader(norm.weight, stored)
        first = rank * total // ranks
        assert norm.weight.equal(torch.stack(whole[first : first + heads]))
