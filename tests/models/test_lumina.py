"""Lumina-mGPT's prompts, sizes and pixels, and what is refused of a broken checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tests.checkpoints.lumina import (
    BEGIN_OF_IMAGE,
    CODES,
    END_OF_ROW,
    SIDE_ZERO,
    load_vqgan,
    make_lumina,
)
from tests.hub import put_into_cache
from zipar_vllm.core.grid import Grid
from zipar_vllm.errors import InvalidOptionError, UnusableModelError
from zipar_vllm.models.lumina import CHAMELEON, TOKENIZER, image_ids
from zipar_vllm.models.registry import check_image_model, load_image_model, load_spec
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import prepare_images

pytestmark = pytest.mark.slow

GRID = Grid(6, 10, row_terminator=True)
YAML, WEIGHTS = "original_tokenizers/vqgan.yaml", "original_tokenizers/vqgan.ckpt"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lumina")
    make_lumina(path)
    return path


@pytest.fixture
def copy(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(path, tmp_path / "copy"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def name_as_published(path: Path, size: int) -> Path:
    """Without ``target_size``, which the published configurations do not have."""
    folder = path.with_name(f"Lumina-mGPT-7B-{size}")
    path.rename(folder)
    change_json("config.json", lambda config: config.pop("target_size"))(folder)
    return folder


def change_json(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        contents = json.loads((path / name).read_text())
        change(contents)
        (path / name).write_text(json.dumps(contents))

    return apply


@pytest.mark.parametrize(
    ("size", "side", "shapes", "window", "steps"),
    [(512, 32, 49, 10, 342), (768, 48, 73, 15, 753), (1024, 64, 97, 20, 1324)],
)
def test_the_published_sizes_windows_and_steps(
    copy: Path, size: int, side: int, shapes: int, window: int, steps: int
) -> None:
    """The numbers of crop sizes are those of the authors' ``generate_crop_size_list``."""
    change_json("config.json", lambda config: config.update(max_position_embeddings=8192))(copy)
    spec = load_spec(name_as_published(copy, size))
    assert next(iter(spec.grids.items())) == (f"{size}x{size}", Grid(side, side, True))
    assert spec.sizes.allowed.startswith(f"auto or one of {shapes} sizes in steps of 32 pixels")
    assert spec.defaults.window == window
    assert Grid(side, side, True).num_steps(window) == steps
    assert (spec.vocabulary.first_id, spec.vocabulary.num_codes) == (4, 8192)
    assert spec.vocabulary.row_terminator == END_OF_ROW
    assert (spec.defaults.guidance_scale, spec.defaults.top_k) == (4.0, 2000)


def test_sizes_of_the_768_model(copy: Path) -> None:
    sizes = load_spec(name_as_published(copy, 768)).sizes
    assert sizes.grid("1536x384") == Grid(24, 96, True)
    assert sizes.grid("736x768") == Grid(48, 46, True)
    for none in ("1568x352", "1024x1024", "512x512", "767x768", "x"):
        assert sizes.grid(none) is None
    assert sizes.nearest("1024x1024") == "768x768"
    assert sizes.nearest("1920x1080") in sizes.listed
    assert sizes.nearest("9000x90") == "1536x384"


def test_a_prompt_has_to_fit_beside_the_largest_picture(path: Path) -> None:
    largest = Grid(16, 4, True).num_positions  # 64x256
    assert load_spec(path).max_prompt_tokens == 4096 - largest


def test_image_tokens_are_named_by_their_codes() -> None:
    digits = {"A": 0, "IMGIMGAZ": 9, "IMGIMGBZ": 10, "IMGIMGCZ": 11}
    assert image_ids(digits) == range(9, 12)
    for wrong in ({}, {"IMGIMGAZ": 9, "IMGIMGCZ": 10}, {"IMGIMGAZ": 9, "IMGIMGBZ": 8}):
        with pytest.raises(ValueError, match="image tokens"):
            image_ids(wrong)


def test_prompts_are_the_authors(path: Path) -> None:
    model, tokenizer = load_image_model(path), Tokenizer.from_file(str(path / "tokenizer.json"))
    prompts = model.prompts("A cat.", None, GRID, guided=True)
    begin = [BEGIN_OF_IMAGE, SIDE_ZERO + 3, SIDE_ZERO + 5]
    assert prompts.conditional[-3:] == prompts.unconditional == begin
    text = tokenizer.decode(prompts.conditional[:-3], skip_special_tokens=False)
    template = (
        "<s>Generate an image of 160x96 according to the following prompt:\n{}<reserved08706>"
    )
    assert text == template.format("A cat.")
    assert prompts.conditional[0] == 0
    assert model.prompts("A cat.", None, GRID, guided=False).unconditional == []
    negative = model.prompts("A cat.", "dogs", GRID, guided=True).unconditional
    assert negative == model.prompts("dogs", None, GRID, guided=False).conditional


def test_a_size_that_it_cannot_draw(path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="got '96x96', allowed is auto or one of 13 sizes"):
        prepare_images(load_image_model(path), "x", ImageOptions(size="96x96"), [1])


def test_pixels_are_the_vqgans(path: Path) -> None:
    codes = torch.randint(0, CODES, (2, 6, 10), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = load_vqgan(path).double()(codes)
    assert expected.std() > 0.1
    shades = ((expected.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    pixels = load_image_model(path).decode(codes)
    assert (pixels.shape, pixels.dtype) == ((2, 96, 160, 3), torch.uint8)
    # In float32 equal within 1e-5 of the range of 2, so rounded they are half a shade apart.
    assert (pixels - shades).abs().max() < 0.5 + 127.5 * 1e-5


def test_what_the_authors_left_out_is_theirs_on_the_hub(
    copy: Path, path: Path, hub: Path, tmp_path: Path
) -> None:
    """As of the published 512 and 1024, which have no tokenizer; none has a VQGAN."""
    (tmp_path / "chameleon").mkdir()
    shutil.move(copy / "original_tokenizers", tmp_path / "chameleon")
    put_into_cache(tmp_path / "chameleon", CHAMELEON, hub)
    (tmp_path / "768").mkdir()
    shutil.move(copy / "tokenizer.json", tmp_path / "768")
    put_into_cache(tmp_path / "768", TOKENIZER, hub)
    ours, whole = load_image_model(copy), load_image_model(path)
    assert ours.prompts("x", None, GRID, True) == whole.prompts("x", None, GRID, True)
    codes = torch.arange(60).view(1, 6, 10)
    assert ours.decode(codes).equal(whole.decode(codes))


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors")

    return apply


def change_config(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return change_json("config.json", change)


def change_vqgan(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        contents = torch.load(path / WEIGHTS, weights_only=True)
        change(contents["state_dict"])
        torch.save(contents, path / WEIGHTS)

    return apply


def change_yaml(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        contents = yaml.safe_load((path / YAML).read_text())
        change(contents["model"]["params"])
        (path / YAML).write_text(yaml.safe_dump(contents))

    return apply


NORM = "model.layers.1.self_attn.q_norm.bias"
UPSAMPLE = "decoder.up.4.upsample.conv.weight"


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json is missing; take that"),
        (lambda path: (path / YAML).unlink(), f"{YAML} or {WEIGHTS} is missing; take both from"),
        (lambda path: (path / WEIGHTS).unlink(), f"{YAML} or {WEIGHTS} is missing; take both from"),
        (lambda path: (path / WEIGHTS).write_bytes(b"short"), "vqgan.ckpt is damaged ("),
        (lambda path: (path / YAML).write_text("model: [x"), "vqgan.yaml: while parsing"),
        (change_yaml(lambda params: params.pop("n_embed")), "vqgan.yaml lacks n_embed"),
        (
            change_yaml(lambda params: params["ddconfig"].update(attn_resolutions=[16])),
            "vqgan.yaml: attn_resolutions is [16], supported is [] or [32]",
        ),
        (
            change_yaml(lambda params: params["ddconfig"].update(ch="many")),
            "vqgan.yaml: Validation error for field 'base_channels'",
        ),
        (
            change_vqgan(lambda state: state.pop(UPSAMPLE)),
            f"vqgan.ckpt: tensor {UPSAMPLE} is missing",
        ),
        (
            change_yaml(lambda params: params.update(n_embed=64)),
            "vqgan.ckpt: tensor quantize.embedding.weight has shape [8192, 8], needed is [64, 8]",
        ),
        (change_tensors(lambda tensors: tensors.pop(NORM)), f"tensor {NORM} is missing"),
        (
            change_tensors(lambda tensors: tensors.update({NORM: torch.zeros(4, 8)})),
            f"tensor {NORM} has shape [4, 8], needed is [1, 8]",
        ),
        (
            change_config(lambda config: config["vocabulary_map"].pop("IMGIMGBAZ")),
            "config.json: vocabulary_map has 8191 image tokens, or some are missing",
        ),
        (
            change_config(lambda config: config["vocabulary_map"].pop("<reserved08799>")),
            "config.json: vocabulary_map has no <reserved08799>",
        ),
        (
            change_config(lambda config: config["vocabulary_map"].pop("<reserved08802>")),
            "tokenizer.json and config.json differ in the id of <reserved08802>",
        ),
        (
            change_config(lambda config: config.update(max_position_embeddings=80)),
            "config.json: max_position_embeddings is 80, a picture has up to 80 tokens",
        ),
        (
            change_config(lambda config: config.update(swin_norm=True)),
            "config.json: swin_norm is true, which the 34B model has alone",
        ),
        (
            change_config(lambda config: config.pop("target_size")),
            "neither its name (such as Lumina-mGPT-7B-768) nor target_size in config.json",
        ),
        (
            change_config(lambda config: config.update(vq_config={"channel_multiplier": [1] * 4})),
            "vqgan.yaml has 16 pixels per token, config.json 8",
        ),
    ],
)
def test_a_broken_checkpoint_is_told_of_in_a_line(
    copy: Path, break_it: Callable[[Path], None], problem: str
) -> None:
    break_it(copy)
    with pytest.raises(UnusableModelError) as error:
        check_image_model(copy)
    message = str(error.value)
    assert "\n" not in message
    assert message.removeprefix(f"{copy}: ").startswith(problem)
