"""LlamaGen's prompts, sizes and pixels, and what is refused of a broken checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.llamagen import CLASSES, CODES, VQModel, load_oracles, make_llamagen
from zipar_vllm.core.grid import Grid
from zipar_vllm.errors import InvalidOptionError, UnusableModelError
from zipar_vllm.models.base import Prompts
from zipar_vllm.models.registry import check_image_model, load_image_model, load_spec

pytestmark = pytest.mark.slow

GRID = Grid(8, 8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llamagen") / "model"
    make_llamagen(path)
    return path


@pytest.fixture
def copy(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(path, tmp_path / "copy"))


def change_config(name: str, **changes: object) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        contents = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**contents, **changes}))

    return apply


def drop_tensor(file: str, name: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = load_file(path / file)
        del tensors[name]
        save_file(tensors, path / file)

    return apply


def test_its_facts_are_the_configs(path: Path) -> None:
    spec = load_spec(path)
    assert dict(spec.grids) == {"128x128": GRID}
    assert (spec.vocabulary.first_id, spec.vocabulary.num_codes) == (0, CODES)
    defaults = spec.defaults
    assert (defaults.guidance_scale, defaults.temperature, defaults.top_k) == (4.0, 1.0, 2000)
    assert spec.max_prompt_tokens == 1


@pytest.mark.parametrize(
    ("side", "size", "window", "steps"),
    [(16, "256x256", 11, 181), (24, "384x384", 16, 392), (32, "512x512", 16, 528)],
)
def test_the_published_sizes_and_steps(
    copy: Path, side: int, size: str, window: int, steps: int
) -> None:
    change_config("config.json", grid_side=side)(copy)
    spec = load_spec(copy)
    assert dict(spec.grids) == {size: Grid(side, side)}
    assert spec.defaults.window == window
    assert spec.grids[size].num_steps(window) == steps


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *(("207", 207), (" 0 ", 0), ("999", 999)),
        ("tench", 0),
        ("Golden  retriever", 207),  # spaces and capitals do not matter
        ("great grey owl, great gray owl, Strix nebulosa", 24),  # as the label has it
        ("Strix nebulosa", 24),
        ("harp", 594),  # also another name of the harmonica
    ],
)
def test_a_class_by_its_number_or_name(path: Path, text: str, label: int) -> None:
    model = load_image_model(path)
    assert model.prompts(text, None, GRID, guided=True) == Prompts([CODES + label], [CODES + 1000])
    assert model.prompts(text, None, GRID, guided=False).unconditional == []
    assert model.prompts("1", text, GRID, guided=True).unconditional == [CODES + label]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1000", "got '1000', allowed is a class: 0 to 999, or its name, such as "),
        ("-1", "got '-1', allowed is a class: 0 to 999, or its name, such as "),
        (
            "gold fish",
            "got 'gold fish', allowed is a class: 0 to 999, or its name, such as goldfish",
        ),
        ("crane", "got 'crane', allowed is 134 or 517: several classes are called so"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_what_is_no_class_is_refused(path: Path, text: str, problem: str, field: str) -> None:
    texts = ("1", text) if field == "negative_prompt" else (text, None)
    with pytest.raises(InvalidOptionError) as error:
        load_image_model(path).prompts(*texts, GRID, guided=True)
    assert error.value.field == field
    assert error.value.problem.startswith(problem)


def test_classes_without_names_have_numbers(copy: Path) -> None:
    change_config("config.json", id2label={})(copy)
    model = load_image_model(copy)
    assert model.prompts("5", None, GRID, guided=False).conditional == [CODES + 5]
    with pytest.raises(InvalidOptionError, match=r"allowed is a class: 0 to 999$"):
        model.prompts("tench", None, GRID, guided=False)


def test_pixels_are_the_published_architectures(path: Path) -> None:
    codes = torch.randint(0, CODES, (3, 8, 8), generator=torch.Generator().manual_seed(1))
    oracle: VQModel = load_oracles(path)[1]
    expected = oracle.double().decode(codes)
    assert expected.std() > 0.05
    shades = (expected.clamp(-1, 1) + 1) * 127.5
    pixels = load_image_model(path).decode(codes)
    assert (pixels.shape, pixels.dtype) == ((3, 128, 128, 3), torch.uint8)
    # In float32 equal within 1e-5, so rounded they are half a shade apart.
    assert (pixels - shades.permute(0, 2, 3, 1)).abs().max() < 0.5 + 127.5 * 1e-5


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (
            lambda path: shutil.rmtree(path / "vq"),
            "{path}/vq: config.json is missing in the folder",
        ),
        (
            lambda path: (path / "vq" / "model.safetensors").unlink(),
            "{path}/vq: model.safetensors is missing in the folder",
        ),
        (
            drop_tensor("model.safetensors", "lm_head.weight"),
            "{path}: tensor lm_head.weight is missing in its weights",
        ),
        (
            drop_tensor("vq/model.safetensors", "decoder.conv_in.weight"),
            "{path}/vq: tensor decoder.conv_in.weight is missing in its weights",
        ),
        (
            change_config("config.json", num_codes=9, vocab_size=1010),
            "{path}: tensor model.embed_tokens.weight has shape [17385, 64], needed is [1010, 64] "
            "(and 1 more)",
        ),
        (
            change_config("config.json", grid_side="wide"),
            "{path}: config.json: grid_side is missing, or no whole number",
        ),
        (
            change_config("config.json", num_classes=10),
            "{path}: config.json: vocab_size is 17385, codes and classes are 16395",
        ),
    ],
)
def test_a_broken_checkpoint_is_told_of_in_a_line(
    copy: Path, break_it: Callable[[Path], None], problem: str
) -> None:
    break_it(copy)
    with pytest.raises(UnusableModelError) as error:
        check_image_model(copy)
    assert str(error.value) == problem.format(path=copy)


def test_every_class_is_offered_by_a_text_that_tells_it(path: Path) -> None:
    model = load_image_model(path)
    concepts: Any = model.spec.details["concepts"]
    assert [concepts[label] for label in (1, 134, 639)] == ["goldfish", "134", "maillot, tank suit"]
    for label, text in enumerate(concepts):
        assert model.prompts(text, None, GRID, guided=False).conditional == [CODES + label]


def test_all_classes_have_names(path: Path) -> None:
    labels = json.loads((path / "config.json").read_text())["id2label"]
    assert len(labels) == CLASSES
    assert (labels["0"], labels["999"]) == (
        "tench, Tinca tinca",
        "toilet tissue, toilet paper, bathroom tissue",
    )
