"""Emu3.5's prompts, sizes and pixels, and what is refused of a broken checkpoint."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.emu3_text import encode
from tests.checkpoints.emu35 import (
    FIRST_ID,
    RANKS,
    SPECIAL,
    VISION_TOKENIZER,
    load_decoder,
    make_emu35,
)
from zipar_vllm.core.grid import Grid
from zipar_vllm.errors import UnusableModelError
from zipar_vllm.models.registry import check_image_model, load_image_model, load_spec
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import prepare_images

GRID = Grid(47, 85, row_terminator=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("emu35") / "model"
    make_emu35(path)
    return path


def publish(path: Path, folder: Path) -> Path:
    """A ``config.json`` that says nothing of sizes, as the published ones."""
    folder.mkdir()
    config = json.loads((path / "config.json").read_text())
    del config["target_size"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_published_sizes_and_steps(path: Path, tmp_path: Path) -> None:
    """The grids of the authors' configs/example_config_t2i.py."""
    spec = load_spec(publish(path, tmp_path / "Emu3.5-Image"))
    assert {size: (grid.rows, grid.columns) for size, grid in spec.grids.items()} == {
        **{"1024x1024": (64, 64), "1168x880": (55, 73), "880x1168": (73, 55)},
        **{"1248x832": (52, 78), "832x1248": (78, 52), "1360x752": (47, 85)},
        **{"752x1360": (85, 47), "1552x656": (41, 97)},
    }
    assert next(iter(spec.grids)) == "1024x1024"
    assert spec.grids["1024x1024"].num_steps(5) == 379
    defaults = spec.defaults
    assert (defaults.window, defaults.guidance_scale, defaults.top_k) == (5, 5.0, 5120)
    assert spec.max_prompt_tokens == 9216 - 64 * 65
    assert (spec.vocabulary.first_id, spec.vocabulary.num_codes) == (FIRST_ID, 131_072)


def test_the_base_model_wants_less_guidance(path: Path, tmp_path: Path) -> None:
    assert load_spec(publish(path, tmp_path / "Emu3.5")).defaults.guidance_scale == 2.0


def test_any_size_that_fits(path: Path) -> None:
    (image,) = prepare_images(load_image_model(path), "x", ImageOptions(size="160x1600"), [1])
    assert image.grid == Grid(100, 10, row_terminator=True)


@pytest.mark.parametrize("text", ["A red apple.", "caf\u00e9 12 {x}\n\n", "<|extra_200|> apple"])
def test_prompts_are_the_authors(path: Path, text: str) -> None:
    model = load_image_model(path)
    picture = "<|image start|>47*85<|image token|>"

    def phrase(task: str, said: str) -> list[int]:
        prompt = f"<|extra_203|>You are a helpful assistant{task}. USER: {said} ASSISTANT: "
        return encode(f"{prompt}<|extra_100|>{picture}", RANKS, SPECIAL)

    prompts = model.prompts(text, None, GRID, guided=True)
    assert prompts.conditional == phrase(" for t2i task", text)
    assert prompts.unconditional == phrase("", "")
    assert model.prompts(text, None, GRID, guided=False).unconditional == []
    negative = model.prompts(text, "dogs", GRID, guided=True).unconditional
    assert negative == phrase(" for t2i task", "dogs")


def test_pixels_are_the_oracles(path: Path) -> None:
    codes = torch.randint(0, 131_072, (2, 6, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = load_decoder(path).double()(codes)
    assert expected.std() > 0.1
    shades = ((expected.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1)
    pixels = load_image_model(path).decode(codes)
    assert (pixels.shape, pixels.dtype) == ((2, 96, 192, 3), torch.uint8)
    # In float32 equal within 1e-5 of the range of 2, so rounded they are half a shade apart.
    assert (pixels - shades).abs().max() < 0.5 + 127.5 * 1e-5


def change(name: str, **fields: Any) -> Callable[[Path], None]:
    """Put other values into a JSON file; None takes the field away."""

    def break_it(path: Path) -> None:
        contents = {**json.loads((path / name).read_text()), **fields}
        kept = {field: value for field, value in contents.items() if value is not None}
        (path / name).write_text(json.dumps(kept))

    return break_it


def lose_vision_tokens(path: Path) -> None:
    lines = (path / "emu3_vision_tokens.txt").read_text().splitlines()
    (path / "emu3_vision_tokens.txt").write_text("\n".join(lines[:-1]))


def lose_attention(path: Path) -> None:
    file = path.parent / VISION_TOKENIZER / "model.safetensors"
    tensors = load_file(file)
    del tensors["decoder.up.4.attn.1.q.weight"]
    save_file(tensors, file)


VISION_CONFIG = f"../{VISION_TOKENIZER}/config.json"


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (change("config.json", vocab_size=184_622), "cannot be served: convert it first, by zipar"),
        (change("config.json", vocab_size=151_854), "vocab_size is 151854, image tokens begin at"),
        (
            change("config.json", vocab_size=282_925),
            "tensor model.embed_tokens.weight has shape [282926, 16], needed is [282925, 16]",
        ),
        (
            change("config.json", head_dim=16),
            "tensor model.layers.0.self_attn.q_proj.weight has shape [32, 16], needed is [64, 16]",
        ),
        (
            change("config.json", eol_token_id=151_847),
            "emu3_vision_tokens.txt and config.json differ in the id of <|extra_200|>",
        ),
        (
            lose_vision_tokens,
            "emu3_vision_tokens.txt and config.json differ in the id of <|visual token 131071|>",
        ),
        (
            lambda path: shutil.rmtree(path.parent / VISION_TOKENIZER),
            "BAAI/Emu3.5-VisionTokenizer: no such folder, and no config.json on the hub",
        ),
        (lose_attention, "tensor decoder.up.4.attn.1.q.weight is missing"),
        (change(VISION_CONFIG, codebook_size=64), "it has 64 codes, "),
        (change(VISION_CONFIG, ch_mult=None), "config.json lacks ch_mult"),
        (change(VISION_CONFIG, ch="many"), "config.json: Validation error for field"),
        (
            change(VISION_CONFIG, attn_resolutions=[32]),
            "attn_resolutions is [32], supported is [] or [16]",
        ),
        (
            change(VISION_CONFIG, ch_mult=[1, 1, 2], attn_resolutions=[64]),
            "it has 4 pixels per token",
        ),
    ],
)
def test_what_does_not_match_is_told_in_a_line(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[Path], None],
    problem: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(path.parent, tmp_path / "copy")
    copy = tmp_path / "copy" / path.name
    check_image_model(copy)
    break_it(copy)
    with pytest.raises(UnusableModelError, match=re.escape(problem)) as error:
        check_image_model(copy)
    assert "\n" not in str(error.value)
