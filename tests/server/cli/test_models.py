"""What ``zipar models``, ``zipar check`` and ``zipar convert`` say."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.cli import check, convert, models
from tests.checkpoints.emu3 import make_emu3
from tests.checkpoints.emu35 import make_emu35
from zipar_vllm.models import DEMO_PATH


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("emu3")
    make_emu3(path)
    return path


def test_the_architectures_that_can_be_served(capsys: pytest.CaptureFixture[str]) -> None:
    models.main([])
    names = capsys.readouterr().out.split()
    assert "JanusForConditionalGeneration" in names
    assert "Emu3ForConditionalGeneration" in names


def test_a_models_sizes_steps_and_memory(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.main([str(path)])
    name, defaults, header, default, *others = capsys.readouterr().out.splitlines()
    assert name == f"{path}: emu3"
    assert defaults == "  guidance_scale 3, temperature 1, top_k 2048, top_p 1, window 7"
    assert header.split()[:4] == ["size", "grid", "steps", "raster"]
    # Keys and values, 2 layers, 1 head of 16 numbers of 4 bytes; 2 lanes of 64 + 72 tokens.
    megabytes = round(2 * 2 * 16 * 4 * 2 * (64 + 72) / 2**20)
    assert default.split() == ["64x64", "8", "x", "8", "57", "64", str(megabytes), "MiB"]
    assert len(others) == 6


def test_a_model_type_that_transformers_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Emu3.5's; its widths are read all the same."""
    make_emu35(tmp_path / "model", side=64)
    models.main([str(tmp_path / "model")])
    _, defaults, _, default, *others = capsys.readouterr().out.splitlines()
    assert defaults == "  guidance_scale 5, temperature 1, top_k 5120, top_p 1, window 5"
    # Keys and values, 2 layers, 2 heads of 8 numbers of 4 bytes; 2 lanes of 64 + 4160 tokens.
    megabytes = round(2 * 2 * 2 * 8 * 4 * 2 * (64 + 4160) / 2**20)
    assert default.split()[-4:] == ["379", "4096", str(megabytes), "MiB"]
    assert len(others) == 7
    check.main([str(tmp_path / "model")])
    assert capsys.readouterr().out.endswith(": a complete checkpoint of emu3.5\n")


def test_the_embedded_model_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    check.main([str(DEMO_PATH)])
    assert capsys.readouterr().out == f"{DEMO_PATH}: a complete checkpoint of zipar-demo\n"


@pytest.mark.parametrize("command", [check.main, models.main], ids=["check", "models"])
def test_what_is_no_model_is_told_of_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: object
) -> None:
    with pytest.raises(SystemExit) as ended:
        command([str(tmp_path)])  # type: ignore[operator]
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: {tmp_path}: config.json is missing in the folder" in line


def test_what_has_no_converter_is_told_of_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        convert.main([str(DEMO_PATH), str(tmp_path / "new")])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "its architecture LlamaForCausalLM has no converter" in line
    assert not (tmp_path / "new").exists()
