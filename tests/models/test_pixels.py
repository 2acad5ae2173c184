"""Pixels of every family are its oracle's decoder's, and no less exact than the oracle's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import emu3, emu35, janus, llamagen, lumina
from zipar_vllm.models import tiles
from zipar_vllm.models.registry import load_image_model

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Family:
    """A family's small checkpoint, and the oracle's decoder.

    Attributes:
        make: Saves a checkpoint of so many tokens each way.
        load: The oracle, a module.
        decode: By the oracle, pixels ``[B, 3, H, W]`` of codes ``[B, rows, columns]``.
        shape: Rows and columns: the larger, the less exact are group norms.
    """

    make: Callable[..., None]
    load: Callable[[Path], Any]
    decode: Callable[[Any, torch.Tensor], torch.Tensor]
    shape: tuple[int, int]


FAMILIES = {
    "janus": Family(
        lambda path: janus.make_janus(path, side=24),
        lambda path: janus.load_oracle(path).model.vqmodel,
        lambda oracle, codes: oracle.decode(codes.flatten(1)),
        (24, 24),
    ),
    "emu3": Family(
        emu3.make_emu3,
        lambda path: emu3.load_oracle(path).model.vqmodel,
        lambda oracle, codes: oracle.decode(codes),
        (24, 32),
    ),
    "emu3.5": Family(
        emu35.make_emu35, emu35.load_decoder, lambda oracle, codes: oracle(codes), (24, 32)
    ),
    "llamagen": Family(
        lambda path: llamagen.make_llamagen(path, side=24),
        lambda path: llamagen.load_oracles(path, side=24)[1],
        lambda oracle, codes: oracle.decode(codes),
        (24, 24),
    ),
    "lumina": Family(
        lumina.make_lumina, lumina.load_vqgan, lambda oracle, codes: oracle(codes), (24, 48)
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_in_float32_they_are_the_oracles(name: str, tmp_path: Path) -> None:
    """Within 1e-5 where shades are in [-1, 1]; either is as far from float64's."""
    family, path = FAMILIES[name], tmp_path / "model"
    family.make(path)
    codes = torch.randint(0, 8_192, (1, *family.shape), generator=torch.Generator().manual_seed(1))
    model: Any = load_image_model(path)
    oracle = family.load(path)
    got, expected = model._decoder(codes), family.decode(oracle, codes)
    exact = family.decode(oracle.double(), codes)
    assert 0.05 < exact.std() < 0.5
    assert (got - expected).abs().max() < 1e-5
    own, oracles = ((one - exact).square().mean().sqrt() for one in (got, expected))
    assert own < 1.25 * oracles


def test_pictures_are_rendered_a_batch_at_a_time() -> None:
    """Three of 384 x 384 at once; one of 960 x 544, and one that is larger than a batch."""
    sizes = []

    class Decoder:
        factor = 16

        def __call__(self, codes: torch.Tensor) -> torch.Tensor:
            sizes.append(len(codes))
            return codes[:, None].repeat_interleave(3, 1) / 4 - 1

    for rows, columns, batches in ((24, 24, [3, 2]), (34, 60, [1] * 5), (64, 64, [1] * 5)):
        codes = (torch.arange(5) % 5)[:, None, None].expand(5, rows, columns)
        shades = tiles.render(Decoder(), codes)
        assert (shades.shape, shades.dtype) == ((5, rows, columns, 3), torch.uint8)
        assert shades[:, 0, 0, 0].tolist() == [0, 32, 64, 96, 128]
        assert sizes == batches
        sizes.clear()
