"""LlamaGen's captions as embeddings, and what is refused of a broken checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.checkpoints.llamagen import FEATURES, encode_padded, load_oracles, make_llamagen
from zipar_vllm.core.grid import Grid
from zipar_vllm.errors import UnusableModelError
from zipar_vllm.models.llamagen_text import clean
from zipar_vllm.models.registry import check_image_model, load_image_model, load_spec

GRID = Grid(8, 8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llamagen") / "model"
    make_llamagen(path, features=FEATURES)
    return path


def test_its_facts(path: Path) -> None:
    spec = load_spec(path)
    assert dict(spec.grids) == {"128x128": GRID}
    defaults = spec.defaults
    assert (defaults.guidance_scale, defaults.temperature, defaults.top_k) == (7.5, 1.0, 1000)
    assert spec.max_prompt_tokens == 120
    assert spec.positions is not None
    assert spec.positions(GRID, 3).tolist() == [0, 1, 2, *range(120, 184)]


def test_both_lanes_are_the_authors_without_their_padding(path: Path) -> None:
    features, kept = encode_padded(path.parent / "t5", "a red apple")
    count = int(kept.sum())
    prompts = load_image_model(path).prompts("A red  apple", None, GRID, guided=True)
    assert (len(prompts.conditional), len(prompts.unconditional)) == (count, count) == (12, 12)
    oracle = load_oracles(path, features=FEATURES)[0].cls_embedding
    projection = oracle["cap_proj"]
    with torch.no_grad():
        for lane, source in enumerate((features[:count], oracle.uncond_embedding[-count:])):
            hidden = torch.nn.functional.gelu(projection["fc1"](source), approximate="tanh")
            got = prompts.embeddings[lane * count : (lane + 1) * count]
            torch.testing.assert_close(got, projection["fc2"](hidden))


def test_negative_prompts_and_long_captions(path: Path) -> None:
    model = load_image_model(path)
    other = model.prompts("a", "a red apple", GRID, guided=True)
    apple = model.prompts("a red apple", None, GRID, guided=False)
    assert (len(other.conditional), len(other.unconditional)) == (2, 12)
    torch.testing.assert_close(other.embeddings[2:], apple.embeddings)
    assert len(model.prompts("a" * 500, None, GRID, guided=False).conditional) == 120


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A Blue  Porsche 356, parked.", "a blue porsche 356, parked."),
        ("see https://x.org/a?b and <b>bold</b> &amp; more", "see and bold more"),
        ("\u201cHello\u201d \u2014 it\u2019s ***new*** ...", '"hello" - it\'s new'),
    ],
)
def test_captions_are_cleaned(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_a_missing_text_encoder_is_told_of_in_a_line(path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(path, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "caption_encoder": str(tmp_path)}))
    with pytest.raises(
        UnusableModelError, match=f"^{tmp_path}: config.json is missing in the fold"
    ):
        check_image_model(copy)
    shutil.rmtree(copy / "caption")
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UnusableModelError, match=r"/caption: model.safetensors is missing in the f"
    ):
        check_image_model(copy)
