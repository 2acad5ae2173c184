"""What every family says of a broken checkpoint: a line per finding, and what to do; never less."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from server.cli import check
from tests.checkpoints import emu3, emu35, janus, llamagen, lumina
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.models.registry import find_problems, load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import prepare_images

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Family:
    """A family's checkpoint and its parts.

    Attributes:
        tokenizer: The file of its own, if it has one.
        pixels: The file that its pixel decoder cannot do without.
        count: Where ``config.json`` says how many tokens there are.
    """

    make: Callable[[Path], None]
    tokenizer: str | None
    pixels: str
    count: tuple[str, ...]
    prompt: str = "a red apple"


def make_text(path: Path) -> None:
    llamagen.make_llamagen(path, features=llamagen.FEATURES)


FAMILIES = {
    "janus": Family(
        janus.make_janus, "tokenizer.json", "model.safetensors", ("text_config", "vocab_size")
    ),
    "emu3": Family(
        emu3.make_emu3, "tokenizer.json", "model.safetensors", ("text_config", "vocab_size")
    ),
    "emu3.5": Family(
        *(emu35.make_emu35, "emu3.tiktoken", f"../{emu35.VISION_TOKENIZER}/model.safetensors"),
        count=("vocab_size",),
    ),
    "lumina": Family(
        *(lumina.make_lumina, "tokenizer.json", "original_tokenizers/vqgan.ckpt"), ("vocab_size",)
    ),
    "llamagen": Family(
        *(llamagen.make_llamagen, None, "vq/model.safetensors", ("num_codes",)), prompt="207"
    ),
    "llamagen-text": Family(make_text, "../t5/tokenizer.json", "vq/config.json", ("num_codes",)),
}


@pytest.fixture(scope="module", params=FAMILIES)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Family, Path]:
    family = FAMILIES[request.param]
    path = tmp_path_factory.mktemp(request.param) / "model"
    family.make(path)
    return family, path


@pytest.fixture
def copy(
    whole: tuple[Family, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Family, Path]:
    """In a folder of its own, the hub out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    family, path = whole
    shutil.copytree(path.parent, tmp_path / "family")
    copy = tmp_path / "family" / path.name
    config = json.loads((copy / "config.json").read_text())
    if "caption_encoder" in config:
        change_config(copy, ("caption_encoder",), str(copy.parent / "t5"))
    return family, copy


def change_config(path: Path, place: tuple[str, ...], value: object) -> None:
    config = json.loads((path / "config.json").read_text())
    inner = config
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    (path / "config.json").write_text(json.dumps(config))


def drop_tensor(path: Path) -> str:
    """Lose the transformer's last norm."""
    tensors = load_file(path / "model.safetensors")
    (name,) = (
        n for n in tensors if n.endswith(("model.norm.weight", "language_model.norm.weight"))
    )
    del tensors[name]
    save_file(tensors, path / "model.safetensors")
    return name


def split(path: Path) -> tuple[Path, Path]:
    """Save the weights in three files; returns the last two."""
    tensors = load_file(path / "model.safetensors")
    files = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    weight_map = {name: files[place % 3] for place, name in enumerate(sorted(tensors))}
    for file in files:
        own = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(own, path / file)
    index = json.dumps({"weight_map": weight_map})
    (path / "model.safetensors.index.json").write_text(index)
    (path / "model.safetensors").unlink()
    return path / files[1], path / files[2]


def findings(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What ``zipar check`` says, of which each line names the model and a remedy."""
    with pytest.raises(SystemExit) as ended:
        check.main([str(path)])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(find_problems(path))
    for line in lines:
        before, remedy = line.rsplit("; ", 1)
        assert before.startswith("zipar check: error: /")
        assert len(remedy) > 10
    return lines


def test_a_whole_one_has_none(copy: tuple[Family, Path]) -> None:
    assert find_problems(copy[1]) == []


def test_all_that_is_wrong_is_told(
    copy: tuple[Family, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A tensor, the tokenizer and the pixel decoder are missing: as many findings."""
    family, path = copy
    expected = [f"tensor {drop_tensor(path)} is missing in its weights"]
    if family.tokenizer:
        (path / family.tokenizer).unlink()
        expected.append(f"{Path(family.tokenizer).name} is missing")
    if family.pixels != "model.safetensors":
        (path / family.pixels).unlink()
        expected.append("is missing")
    lines = findings(path, capsys)
    assert len(lines) == len(expected)
    for problem in expected:
        assert any(problem in line for line in lines), lines


def test_missing_shards(copy: tuple[Family, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, path = copy
    lost = split(path)
    assert find_problems(path) == []
    for file in lost:
        file.unlink()
    lines = findings(path, capsys)
    assert [
        f"{file.name} is missing in the folder" in line
        for file, line in zip(lost, lines, strict=True)
    ] == [True, True]


def test_an_unknown_architecture(
    copy: tuple[Family, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = copy
    change_config(path, ("architectures",), ["OtherForCausalLM"])
    (line,) = findings(path, capsys)
    assert "its architecture OtherForCausalLM cannot be served, known are" in line


def test_another_vocabulary(copy: tuple[Family, Path], capsys: pytest.CaptureFixture[str]) -> None:
    family, path = copy
    change_config(path, family.count, 1_000)
    assert findings(path, capsys)


@pytest.mark.parametrize("size", ["1x1", "9999x9999", "large"])
def test_a_size_that_it_cannot_draw(whole: tuple[Family, Path], size: str) -> None:
    family, path = whole
    with pytest.raises(InvalidOptionError, match=f"^size: got '{size}', allowed is auto"):
        prepare_images(load_image_model(path), family.prompt, ImageOptions(size=size), [1])
