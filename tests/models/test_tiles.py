"""Pictures rendered in tiles are those rendered whole: large ones, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints.emu3 import make_emu3
from tests.checkpoints.emu35 import make_emu35
from tests.checkpoints.janus import make_janus
from tests.checkpoints.llamagen import make_llamagen
from tests.checkpoints.lumina import make_lumina
from zipar_vllm.models import tiles
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.models.tiles import Tail

pytestmark = pytest.mark.slow

CODES = torch.randint(0, 8_192, (1, 4, 24), generator=torch.Generator().manual_seed(1))


FAMILIES = {
    "emu3": make_emu3,
    "emu3.5": make_emu35,
    "janus": make_janus,
    "llamagen": make_llamagen,
    "lumina": make_lumina,
}


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
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
    rows, columns = codes.shape[1:]
    head = decoder._head(codes)
    pixels: torch.Tensor = decoder.tail.in_tiles(*head, rows=rows, columns=columns, size=6)
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
    assert (tiled - whole).abs().max() < 1e-4  # an eightieth of a shade, of 2 / 255 each


@torch.inference_mode()
def test_a_tile_without_the_wholes_statistics_would_differ(decoder: Any) -> None:
    """So that the test above can fail."""
    whole, part = decoder(CODES), decoder(CODES[..., :12])
    assert (part[..., :32] - whole[..., :32]).abs().max() > 1e-3


@pytest.fixture
def refused(decoder: Any, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """What was out of memory: all that is wider than a tile, or more than one picture.

    Tiles are of 6 x 6 tokens.
    """
    run: Callable[..., torch.Tensor] = decoder._tail
    refused = []

    def run_small(states: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        if states.shape[-1] >= 48 or len(states) > 1:
            refused.append(states.shape)
            raise torch.OutOfMemoryError
        return run(states, *others)

    monkeypatch.setattr(decoder, "_tail", run_small)
    monkeypatch.setattr(Tail.in_tiles, "__kwdefaults__", {"size": 6})
    return refused


@torch.inference_mode()
def test_what_does_not_fit_is_tiled(decoder: Any, refused: list[torch.Size]) -> None:
    expected = in_tiles(decoder)
    assert decoder(CODES).equal(expected)
    assert len(refused) == 1


@torch.inference_mode()
def test_a_batch_that_does_not_fit_is_rendered_one_by_one(
    decoder: Any, refused: list[torch.Size]
) -> None:
    batch = CODES.view(2, 4, 12)
    expected = torch.cat([decoder(one[None]) for one in batch])
    assert not refused
    assert (decoder(batch) - expected).abs().max() < 1e-10
    assert len(refused) == 1


@torch.inference_mode()
def test_a_large_picture_is_tiled_from_the_start(
    decoder: Any, refused: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = in_tiles(decoder)
    monkeypatch.setattr(tiles, "WHOLE_PIXELS", CODES.numel() * decoder.factor**2 - 1)
    assert decoder(CODES).equal(expected)
    assert not refused
