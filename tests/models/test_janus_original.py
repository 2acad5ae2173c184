"""A Janus-Pro in the authors' layout, converted, is the one in transformers' layout."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import JanusConfig

from tests.checkpoints.janus import make_janus
from zipar_vllm.errors import UnusableModelError
from zipar_vllm.models.registry import convert, load_image_model, load_spec

pytestmark = pytest.mark.slow


def original_name(name: str) -> str:
    """What the authors call a tensor of transformers' (their modeling_vlm.py and vq_model.py)."""
    name = name.removeprefix("model.")
    name = name.replace("language_model.", "language_model.model.")
    name = name.replace("generation_embeddings", "gen_embed")
    name = name.replace("generation_aligner.fc1", "gen_aligner.layers.0")
    name = name.replace("generation_aligner.hidden_layers.0", "gen_aligner.layers.2")
    name = name.replace("generation_head.proj_out", "gen_head.output_mlp_projector")
    name = name.replace("generation_head", "gen_head")
    if name.startswith("vqmodel."):
        name = name.replace("vqmodel.", "gen_vision_model.")
        name = name.replace(".up.", ".conv_blocks.").replace(".down.", ".conv_blocks.")
        name = re.sub(r"\.mid\.(block_1|attn_1|block_2)", _mid, name)
        name = re.sub(r"(conv_blocks\.\d+)\.block\.", r"\1.res.", name)
    return name


def _mid(match: re.Match[str]) -> str:
    return f".mid.{('block_1', 'attn_1', 'block_2').index(match[1])}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint in transformers' layout, and the same in the authors'."""
    ours, theirs = (tmp_path_factory.mktemp(name) for name in ("transformers", "authors"))
    make_janus(ours, published_pixels=True)
    tensors = load_file(ours / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        renamed = {original_name(name): tensors[name] for name in part}
        renamed["gen_vision_model.quantize.codebook_used"] = torch.zeros(4)
        torch.save(renamed, theirs / file)
        weight_map |= dict.fromkeys(renamed, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (theirs / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ours / name, theirs / name)
    (theirs / "special_tokens_map.json").write_text("{}")
    config = JanusConfig.from_pretrained(ours)
    text, hidden = config.text_config, config.text_config.hidden_size
    fields = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
        *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    )
    language = {name: getattr(text, name) for name in fields}
    contents = {
        "architectures": ["MultiModalityCausalLM"],
        "model_type": "multi_modality",
        "language_config": {"model_type": "llama", "torch_dtype": "float32", **language},
        "vision_config": {"params": {"image_size": config.vision_config.image_size}},
        "gen_vision_config": {"params": {"image_token_size": 16_384, "n_embed": 8}},
        "gen_aligner_config": {"params": {"depth": 2, "input_dim": 8, "n_embed": hidden}},
        "gen_head_config": {"params": {"image_token_embed": hidden, "n_embed": hidden}},
    }
    (theirs / "config.json").write_text(json.dumps(contents))
    return ours, theirs


def test_tensors_facts_prompts_and_pixels_are_the_same(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    ours, theirs = folders
    target = tmp_path / "converted"
    convert(theirs, target)
    assert load_spec(target) == load_spec(ours)
    expected = load_file(ours / "model.safetensors")
    written = {}
    for file in target.glob("*.safetensors"):
        written |= load_file(file)
    assert all(torch.equal(written[name], expected[name]) for name in written)
    left_out = ("vision_model.", "aligner.", "vqmodel.encoder.", "vqmodel.quant_conv.")
    prefixes = ("lm_head.", *(f"model.{name}" for name in left_out))
    assert expected.keys() - written.keys() == {n for n in expected if n.startswith(prefixes)}
    one, other = load_image_model(ours), load_image_model(target)
    grid = one.spec.grids["128x128"]
    assert one.prompts("x", None, grid, True) == other.prompts("x", None, grid, True)
    codes = torch.arange(64).view(1, 8, 8)
    assert one.decode(codes).equal(other.decode(codes))


def test_it_is_told_how_to_serve_the_authors_layout(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UnusableModelError, match="cannot be served: convert it first, by zipar co"):
        load_spec(folders[1])


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (
            lambda path: (path / "pytorch_model-00002-of-00002.bin").unlink(),
            "pytorch_model-00002-of-00002.bin is missing",
        ),
        (
            lambda path: (path / "config.json").write_text(
                '{"architectures": ["MultiModalityCausalLM"]}'
            ),
            "config.json has no 'vision_config'",
        ),
        (
            lambda path: (path / "config.json").write_text('{"architectures": ["Other"]}'),
            "its architecture Other has no converter; known are ",
        ),
    ],
)
def test_what_is_missing_is_told_in_a_line(
    folders: tuple[Path, Path], tmp_path: Path, break_it: Callable[[Path], None], problem: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folders[1], copy, copy_function=lambda s, d: Path(d).symlink_to(s))
    (copy / "config.json").unlink()  # it may be written to, and is a link
    shutil.copy(folders[1] / "config.json", copy)
    break_it(copy)
    with pytest.raises(UnusableModelError) as error:
        convert(copy, tmp_path / "converted")
    assert str(error.value).startswith(f"{copy}: {problem}")


def test_nothing_is_overwritten(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        convert(folders[1], tmp_path)
