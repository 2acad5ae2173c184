"""An Emu3-Gen in the authors' layout, converted, is the one in transformers' layout."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.emu3 import CODES, SPECIAL, make_emu3
from tests.checkpoints.emu3_text import encode, save_text_side
from zipar_vllm.core.grid import Grid
from zipar_vllm.errors import UnusableModelError
from zipar_vllm.models.registry import check_image_model, convert, load_image_model, load_spec

pytestmark = pytest.mark.slow

RANKS = {bytes([byte]): byte for byte in range(256)} | {
    piece: 256 + place
    for place, piece in enumerate((b"ca", b" a", b" ca", b"cat", b" cat", b"12", b"\xc3\xa9"))
}


def original_name(name: str) -> str:
    """What the authors call a tensor of the VQ model (their modeling_emu3visionvq.py)."""
    name = name.removeprefix("vqmodel.")
    name = name.replace("middle_block.attn_norm.", "mid.attn_1.norm.")
    name = name.replace("middle_block.", "mid.").replace("up_block.", "").replace("down_block.", "")
    name = re.sub(r"attn_norms\.(\d+)\.", r"attn.\1.norm.", name)
    return name.replace("out_proj", "PROJ").replace("_proj", "").replace("PROJ", "proj_out")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint in transformers' layout, and the same in the authors', in two shards."""
    ours, theirs = (tmp_path_factory.mktemp(name) / "Emu3-Gen" for name in ("ours", "theirs"))
    vision = theirs.parent / "Emu3-VisionTokenizer"
    for folder in (ours, theirs, vision):
        folder.mkdir()
    make_emu3(ours)
    tensors = load_file(ours / "model.safetensors")
    text = {n.removeprefix("text_model."): t for n, t in tensors.items() if n[:4] == "text"}
    weight_map = {}
    for number, names in enumerate((sorted(text)[::2], sorted(text)[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: text[name] for name in names}, theirs / file)
        weight_map |= dict.fromkeys(names, file)
    (theirs / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    pixels = {}
    for name, tensor in tensors.items():
        if name.startswith("vqmodel."):
            is_matrix = re.search(r"[qkvt]_proj\.weight", name)
            pixels[original_name(name)] = tensor[..., None, None] if is_matrix else tensor
    save_file(pixels, vision / "model.safetensors")

    config = json.loads((ours / "config.json").read_text())
    fields = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps"),
        *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    )
    contents = {
        **{name: config["text_config"][name] for name in fields},
        **{"architectures": ["Emu3ForCausalLM"], "model_type": "Emu3", "torch_dtype": "float32"},
        **{"rope_theta": 1_000_000.0, "rope_scaling": None, "image_area": config["image_area"]},
    }
    (theirs / "config.json").write_text(json.dumps(contents))
    vq = {
        **{"architectures": ["Emu3VisionVQModel"], "codebook_size": CODES, "embed_dim": 4},
        **{"z_channels": 4, "out_channels": 3, "temporal_downsample_factor": 4, "ch": 32},
        **{"ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [3]},
    }
    (vision / "config.json").write_text(json.dumps(vq))
    save_text_side(theirs, RANKS, CODES)
    return ours, theirs


@pytest.fixture(scope="module")
def converted(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "Emu3-Gen"
    convert(folders[1], target)
    return target


def test_tensors_facts_and_pixels_are_the_same(folders: tuple[Path, Path], converted: Path) -> None:
    ours = folders[0]
    check_image_model(converted)
    assert load_spec(converted) == load_spec(ours)
    expected = load_file(ours / "model.safetensors")
    written = {}
    for file in sorted(converted.glob("*.safetensors")):
        written |= load_file(file)
    assert all(torch.equal(written[name], expected[name]) for name in written)
    left_out = ("vqmodel.encoder.", "vqmodel.quant_conv.")
    assert expected.keys() - written.keys() == {n for n in expected if n.startswith(left_out)}
    text = json.loads((converted / "config.json").read_text())["text_config"]
    assert text["rope_parameters"] == {"rope_theta": 1_000_000.0, "rope_type": "default"}
    codes = torch.arange(64).view(1, 8, 8)
    one, other = (load_image_model(path).decode(codes) for path in (ours, converted))
    assert one.equal(other)


@pytest.mark.parametrize(
    "text", ["a cat", "Cats' cat, 12 caf\u00e9s", "cafe\u0301\n\n  cat!?", "<|extra_200|> cat"]
)
def test_texts_become_the_tokens_of_the_authors_tokenizer(converted: Path, text: str) -> None:
    said = f"{text} masterpiece, film grained, best quality."
    prompt = f"<|extra_203|>{said}<|image start|>8*8<|image token|>"
    grid = Grid(8, 8, row_terminator=True)
    ids = load_image_model(converted).prompts(text, None, grid, False).conditional
    assert ids == encode(prompt, RANKS, SPECIAL)


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (lambda path: (path / "emu3.tiktoken").unlink(), "emu3.tiktoken is missing"),
        (
            lambda path: (path / "model-00002-of-00002.safetensors").unlink(),
            "model-00002-of-00002.safetensors is missing",
        ),
        (
            lambda path: shutil.rmtree(path.parent / "Emu3-VisionTokenizer"),
            "no such folder, and no config.json on the hub or in its local cache",
        ),
        (
            lambda path: (path / "config.json").write_text(
                '{"architectures": ["Emu3ForCausalLM"]}'
            ),
            "config.json, its own or that of",
        ),
        (
            lambda path: (path / "config.json").write_text(
                '{"architectures": ["Emu3ForCausalLM"], "vocab_size": 282926}'
            ),
            "vocab_size is 282926, that of an Emu3 is 184622",
        ),
    ],
)
def test_what_is_missing_is_told_in_a_line(
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[Path], None],
    problem: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shutil.copytree(folders[1].parent, tmp_path / "copy")
    break_it(tmp_path / "copy" / "Emu3-Gen")
    with pytest.raises(UnusableModelError, match=re.escape(problem)):
        convert(tmp_path / "copy" / "Emu3-Gen", tmp_path / "converted")


def test_it_is_told_how_to_serve_the_authors_layout(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UnusableModelError, match="cannot be served: convert it first, by zipar co"):
        load_spec(folders[1])
