"""Janus-Pro's prompts, sizes and pixels, and what is refused of a broken checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tests.checkpoints.janus import VOCABULARY, load_oracle, make_janus, special_ids
from zipar_vllm.core.grid import Grid
from zipar_vllm.errors import UnusableModelError
from zipar_vllm.models.janus import BEGIN, BEGIN_OF_IMAGE, PAD
from zipar_vllm.models.registry import check_image_model, load_image_model, load_spec

pytestmark = pytest.mark.slow

GRID = Grid(8, 8)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("janus")
    make_janus(path)
    return path


@pytest.fixture
def copy(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(path, tmp_path / "copy"))


def test_its_facts_are_the_configs(path: Path) -> None:
    spec = load_spec(path)
    assert dict(spec.grids) == {"128x128": GRID}
    assert spec.vocabulary.first_id == VOCABULARY
    assert (spec.defaults.guidance_scale, spec.defaults.temperature) == (5.0, 1.0)
    assert spec.max_prompt_tokens == 16_384 - 64


def test_the_published_checkpoints_draw_576_tokens_in_116_steps(tmp_path: Path) -> None:
    """With transformers' defaults, which the published configurations leave out."""
    config = {"architectures": ["JanusForConditionalGeneration"], "model_type": "janus"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = load_spec(tmp_path)
    assert dict(spec.grids) == {"384x384": Grid(24, 24)}
    assert spec.vocabulary.num_codes == 16_384
    assert spec.grids["384x384"].num_steps(4) == 116
    assert spec.defaults.window == 8


@pytest.mark.parametrize("size", ["1B", "7B"])
def test_prompts_are_the_authors(tmp_path: Path, size: str) -> None:
    make_janus(tmp_path, size=size, side=2)
    model, ids = load_image_model(tmp_path), special_ids(size)
    prompts = model.prompts("  a red\n apple ", None, GRID, guided=True)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = tokenizer.decode(prompts.conditional, skip_special_tokens=False)
    assert text == f"{BEGIN}<|User|>: a red\n apple\n\n<|Assistant|>:{BEGIN_OF_IMAGE}"
    assert prompts.conditional[1] == ids["<|User|>"]  # one token, not its letters
    length = len(prompts.conditional)
    assert prompts.unconditional == [ids[BEGIN], *[ids[PAD]] * (length - 2), ids[BEGIN_OF_IMAGE]]
    assert model.prompts("a", None, GRID, guided=False).unconditional == []
    negative = model.prompts("a", "blurred", GRID, guided=True).unconditional
    assert negative == model.prompts("blurred", None, GRID, guided=False).conditional


def test_pixels_are_transformers(path: Path) -> None:
    codes = torch.randint(0, 16_384, (3, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = load_oracle(path).decode_image_tokens(codes.flatten(1))
    assert expected.std() > 0.1
    shades = (expected.clamp(-1, 1) + 1) * 127.5
    pixels = load_image_model(path).decode(codes)
    assert (pixels.shape, pixels.dtype) == ((3, 128, 128, 3), torch.uint8)
    # In float32 equal within 1e-5 of the range of 2, so rounded they are half a shade apart.
    assert (pixels - shades).abs().max() < 0.5 + 127.5 * 1e-5


def test_shards(tmp_path: Path, path: Path) -> None:
    make_janus(tmp_path, shards=True)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    codes = torch.arange(64).view(1, 8, 8)
    whole, sharded = (load_image_model(folder).decode(codes) for folder in (path, tmp_path))
    assert whole.equal(sharded)
    last = max(tmp_path.glob("*.safetensors"))
    last.unlink()
    assert problem_of(tmp_path) == f"{last.name} is missing in the folder"


def problem_of(path: Path) -> str:
    with pytest.raises(UnusableModelError) as error:
        check_image_model(path)
    message = str(error.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors")

    return apply


def change_json(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        contents = json.loads((path / name).read_text())
        change(contents)
        (path / name).write_text(json.dumps(contents))

    return apply


HEAD = "model.generation_head.vision_head.weight"
PIXELS = "model.vqmodel.post_quant_conv.weight"


def rename_begin_of_image(tokenizer: Any) -> None:
    del tokenizer["model"]["vocab"][BEGIN_OF_IMAGE]
    for token in tokenizer["added_tokens"]:
        token["content"] = token["content"].replace(BEGIN_OF_IMAGE, "<boi>")


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        (
            lambda path: (path / "model.safetensors").write_bytes(b"short"),
            "model.safetensors is damaged",
        ),
        (change_tensors(lambda t: t.pop(HEAD)), f"tensor {HEAD} is missing"),
        (change_tensors(lambda t: t.pop(PIXELS)), f"tensor {PIXELS} is missing"),
        (
            change_tensors(lambda t: t.update({HEAD: torch.zeros(9, 64)})),
            f"tensor {HEAD} has shape [9, 64], needed is [16384, 64]",
        ),
        (
            change_json("tokenizer.json", rename_begin_of_image),
            "tokenizer.json has no token <begin_of_image>",
        ),
        (
            change_json("config.json", lambda c: c["text_config"].update(vocab_size=100_000)),
            f"tokenizer.json gives {BEGIN} the id 100000, the model has 100000",
        ),
        (
            change_json("config.json", lambda c: c["vq_config"].update(num_embeddings="many")),
            "config.json: Validation error for field 'num_embeddings'",
        ),
    ],
)
def test_a_broken_checkpoint_is_told_of_in_a_line(
    copy: Path, break_it: Callable[[Path], None], problem: str
) -> None:
    break_it(copy)
    assert problem_of(copy).startswith(problem)


def test_what_only_reads_images_may_be_missing(copy: Path) -> None:
    change_tensors(
        lambda tensors: [
            tensors.pop(name)
            for name in list(tensors)
            if name.startswith(("model.vision_model.", "model.vqmodel.encoder."))
        ]
    )(copy)
    check_image_model(copy)


def test_a_quantised_transformer_is_vllms_to_check(copy: Path) -> None:
    change_tensors(lambda tensors: tensors.pop(HEAD))(copy)
    change_json("config.json", lambda c: c.update(quantization_config={"quant_method": "awq"}))(
        copy
    )
    check_image_model(copy)
    change_tensors(lambda tensors: tensors.pop(PIXELS))(copy)
    assert problem_of(copy).startswith(f"tensor {PIXELS} is missing")
