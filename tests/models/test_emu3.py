"""Emu3's prompts, sizes and pixels, and what is refused of a broken checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from tests.checkpoints.emu3 import FIRST_ID, load_oracle, make_emu3
from zipar_vllm.core.grid import Grid
from zipar_vllm.errors import InvalidOptionError, UnusableModelError
from zipar_vllm.models.emu3 import NEGATIVE
from zipar_vllm.models.registry import check_image_model, load_image_model, load_spec
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import prepare_images

pytestmark = pytest.mark.slow

GRID = Grid(68, 120, row_terminator=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("emu3")
    make_emu3(path)
    return path


@pytest.fixture(scope="module")
def published(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the configuration's defaults where they concern sizes, as the published one has them."""
    folder = Path(shutil.copytree(path, tmp_path_factory.mktemp("emu3") / "published"))
    config = json.loads((folder / "config.json").read_text())
    del config["image_area"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_published_sizes_and_steps(published: Path) -> None:
    spec = load_spec(published)
    assert list(spec.grids) == [
        *("720x720", "832x624", "624x832", "880x584", "584x880", "960x544", "544x960")
    ]
    assert spec.grids["960x544"] == GRID
    steps = {size: spec.grids[size].num_steps(7) for size in ("720x720", "960x544")}
    assert steps == {"720x720": 713, "960x544": 589}
    assert (spec.defaults.window, spec.defaults.guidance_scale, spec.defaults.top_k) == (
        *(7, 3.0),
        2048,
    )
    assert spec.max_prompt_tokens == 9216 - 90 * 91
    assert spec.vocabulary.first_id == FIRST_ID


def test_any_size_that_fits(published: Path) -> None:
    model = load_image_model(published)
    (image,) = prepare_images(model, "x", ImageOptions(size="80x800"), [1])
    assert image.grid == Grid(100, 10, row_terminator=True)
    with pytest.raises(InvalidOptionError, match="got '1024x1024', allowed is auto or width x"):
        prepare_images(model, "x", ImageOptions(size="1024x1024"), [1])


def test_prompts_tell_the_size_in_both_lanes(path: Path) -> None:
    model, tokenizer = load_image_model(path), Tokenizer.from_file(str(path / "tokenizer.json"))

    def texts(negative: str | None) -> list[str]:
        prompts = model.prompts("A cat.", negative, GRID, guided=True)
        return [
            tokenizer.decode(ids, skip_special_tokens=False)
            for ids in (prompts.conditional, prompts.unconditional)
        ]

    before, after = "<|extra_203|>", "<|image start|>68*120<|image token|>"
    positive = f"{before}A cat. masterpiece, film grained, best quality.{after}"
    assert texts(None) == [positive, f"{before}{NEGATIVE}{after}"]
    assert texts("dogs") == [positive, f"{before}dogs{after}"]
    assert model.prompts("A cat.", None, GRID, guided=False).unconditional == []


def test_pixels_are_transformers(path: Path) -> None:
    codes = torch.randint(0, 32_768, (2, 6, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = load_oracle(path).model.vqmodel.decode(codes)
    assert expected.std() > 0.1
    shades = ((expected.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    pixels = load_image_model(path).decode(codes)
    assert (pixels.shape, pixels.dtype) == ((2, 48, 96, 3), torch.uint8)
    # In float32 equal within 1e-5 of the range of 2, so rounded they are half a shade apart.
    assert (pixels - shades).abs().max() < 0.5 + 127.5 * 1e-5


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        ("<|visual token 000007|>", "vocabulary_map lacks some of 32768 visual tokens"),
        ("<|extra_200|>", "vocabulary_map has no <|extra_200|>"),
        ("<|image start|>", "tokenizer.json and config.json differ in the id of <|image start|>"),
    ],
)
def test_a_vocabulary_that_does_not_match(
    path: Path, tmp_path: Path, token: str, problem: str
) -> None:
    copy = Path(shutil.copytree(path, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    del config["vocabulary_map"][token]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnusableModelError) as error:
        check_image_model(copy)
    assert problem in str(error.value)
