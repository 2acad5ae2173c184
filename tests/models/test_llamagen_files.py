"""Published LlamaGen files become a checkpoint folder; what is none is told of in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from server.cli import main as cli
from tests.checkpoints.llamagen import HEADS, WIDTH, make_files
from zipar_vllm.models.llamagen_files import convert
from zipar_vllm.models.registry import check_image_model

pytestmark = pytest.mark.slow


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return make_files(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The command's error, if it exits with 2."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["convert", *map(str, arguments)])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_the_command_converts(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "made" / "model"
    transformer, pixels = map(str, files)
    cli.main(["convert", transformer, str(output), "--pixels", pixels, "--heads", str(HEADS)])
    assert capsys.readouterr().out == f"{output}: a complete checkpoint\n"
    check_image_model(output)


def test_tensors_bare_as_fsdp_saves_them(files: tuple[Path, Path], tmp_path: Path) -> None:
    convert(*files, tmp_path / "wrapped", heads=HEADS)
    bare = tmp_path / "c2i_bare.pt"
    torch.save(torch.load(files[0], weights_only=False)["model"], bare)
    convert(bare, files[1], tmp_path / "bare", heads=HEADS, image_size=128)
    for name in ("model.safetensors", "vq/model.safetensors"):
        wrapped, same = load_file(tmp_path / "wrapped" / name), load_file(tmp_path / "bare" / name)
        assert wrapped.keys() == same.keys()
        assert all(wrapped[key].equal(same[key]) for key in wrapped)
    sides = [json.loads((tmp_path / of / "config.json").read_text()) for of in ("wrapped", "bare")]
    assert sides[0] == sides[1]


def test_heads_of_a_published_size(tmp_path: Path) -> None:
    files = make_files(tmp_path, layers=12, width=768, heads=12)
    convert(*files, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["num_attention_heads"], config["head_dim"]) == (12, 64)
    assert config["intermediate_size"] == 2048


def change(path: Path, **tensors: Any) -> None:
    contents = torch.load(path, weights_only=False)
    contents["model"].update(tensors)
    torch.save(contents, path)


def test_bad_input_is_told_of_in_a_line(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformer, pixels = files
    output, heads = tmp_path / "model", ("--heads", HEADS)

    def problem(model: Path, decoder: Path, target: Path, *options: object) -> str:
        text = run(capsys, model, target, "--pixels", decoder, *options)
        assert text.count("\n") == 1
        return text.removeprefix("zipar convert: error: ").rstrip()

    missing = tmp_path / "none.pt"
    assert problem(missing, pixels, output) == f"{missing}: there is no such file"
    broken = tmp_path / "broken_256.pt"
    broken.write_bytes(b"short")
    assert problem(broken, pixels, output).startswith(f"{broken}: torch cannot read it (")
    torch.save([1, 2], broken)
    assert problem(broken, pixels, output) == f"{broken}: it is no file of named tensors"
    assert problem(transformer, pixels, output) == (
        f"{transformer}: no published model has 2 layers of {WIDTH}: give its heads"
    )
    assert problem(transformer, pixels, output, "--heads", 5) == (
        f"{transformer}: 5 heads cannot share its width of {WIDTH}, in multiples of 4"
    )
    unnamed = transformer.with_name("c2i.pt")
    unnamed.write_bytes(transformer.read_bytes())
    assert problem(unnamed, pixels, output, *heads) == (
        f"{unnamed}: its name ends in no picture size as c2i_B_384.pt does: give one"
    )
    assert problem(transformer, pixels, output, *heads, "--image-size", 100) == (
        f"{transformer}: image size 100 is no multiple of 16 pixels per token"
    )
    assert problem(pixels, transformer, output, *heads) == (
        f"{transformer}: it is no pixel decoder of LlamaGen: it has no decoder.conv_blocks"
    )
    assert problem(pixels, pixels, output, *heads, "--image-size", 128) == (
        f"{pixels}: tensor tok_embeddings.weight is missing"
    )
    assert problem(transformer, pixels, tmp_path, *heads).endswith(f"exists: '{tmp_path}'")
    assert run(capsys, transformer, output) == (
        f"zipar convert: error: {transformer} needs its --pixels\n"
    )
    change(pixels, **{"quantize.embedding.weight": torch.zeros(9, 8)})
    assert problem(transformer, pixels, output, *heads) == (
        f"{pixels}: it has 9 codes, the transformer 16384"
    )
    assert not (tmp_path / "model").exists()
