"""Pictures rendered in tiles are those rendered whole, and only where the whole does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints.emu3 import make_emu3
from tests.checkpoints.emu35 import make_emu35
from tests.checkpoints.lumina import make_lumina
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.models.tiles import Tail

CODES = torch.randint(0, 8_192, (1, 4, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(
    scope="module", params=[make_emu3, make_emu35, make_lumina], ids=["emu3", "emu3.5", "lumina"]
)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The decoder of a small checkpoint, in float64 and without the rounding to bytes."""
    path = tmp_path_factory.mktemp("tiles") / "model"
    make: Callable[[Path], None] = request.param
    make(path)
    model: Any = load_image_model(path)
    decoder = model._decoder
    getattr(decoder, "_model", decoder).double()
    return decoder


def in_tiles(decoder: Any, codes: torch.Tensor = CODES) -> torch.Tensor:
    """Four tiles, which with their margins are narrower than the whole."""
    head = decoder._head(codes)
    inputs = head if isinstance(head, tuple) else (head,)
    rows, columns = codes.shape[1:]
    pixels: torch.Tensor = decoder.tail.in_tiles(*inputs, rows=rows, columns=columns, size=6)
    return pixels


@torch.inference_mode()
def test_tiles_are_the_whole(decoder: Any) -> None:
    """In float64 to ten digits: nothing but rounding differs."""
    whole = decoder(CODES)
    assert whole.std() > 0.05
    assert (in_tiles(decoder) - whole).abs().max() < 1e-10
    assert decoder(CODES).equal(whole)  # the norms are themselves again


@torch.inference_mode()
def test_in_float32_they_differ_by_less_than_a_shade(decoder: Any) -> None:
    modules = getattr(decoder, "_model", decoder).float()
    whole, tiled = decoder(CODES.mT), in_tiles(decoder, CODES.mT)
    modules.double()
    assert (tiled - whole).abs().max() < 1e-3  # an eighth of a shade, of 2 / 255 each


@torch.inference_mode()
def test_a_tile_without_the_wholes_statistics_would_differ(decoder: Any) -> None:
    """So that the test above can fail."""
    whole, part = decoder(CODES), decoder(CODES[..., :12])
    assert (part[..., :32] - whole[..., :32]).abs().max() > 1e-3


@torch.inference_mode()
def test_what_does_not_fit_is_tiled(decoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, run, refused = decoder(CODES), decoder._tail, []

    def run_small(states: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        if states.shape[-1] >= 48:
            refused.append(states.shape)
            raise torch.OutOfMemoryError
        pixels: torch.Tensor = run(states, *others)
        return pixels

    monkeypatch.setattr(decoder, "_tail", run_small)
    monkeypatch.setattr(Tail.in_tiles, "__kwdefaults__", {"size": 6})
    assert (decoder(CODES) - whole).abs().max() < 1e-10
    assert len(refused) == 1
