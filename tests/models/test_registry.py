"""Families are told by the architecture; what is no image model is refused in a line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.hub import put_into_cache
from zipar_vllm.errors import UnusableModelError
from zipar_vllm.models import DEMO_PATH
from zipar_vllm.models.registry import (
    architectures,
    check_image_model,
    load_image_model,
    load_spec,
)

OUTSIDE = """
from dataclasses import replace

from zipar_vllm.models.demo import DemoModel


class OutsideModel(DemoModel):
    @staticmethod
    def read_spec(checkpoint):
        return replace(DemoModel.read_spec(checkpoint), family="outside")
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The embedded model in a folder of its own."""
    return Path(shutil.copytree(DEMO_PATH, tmp_path / "copy"))


@pytest.fixture
def outside_family(tmp_path: Path) -> Iterator[None]:
    """A family of another package, installed."""
    (tmp_path / "outside_family.py").write_text(OUTSIDE)
    info = tmp_path / "outside_family-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-family\nVersion: 1.0\n")
    line = "OutsideForCausalLM = outside_family:OutsideModel"
    (info / "entry_points.txt").write_text(f"[zipar_vllm.models]\n{line}\n")
    sys.path.insert(0, str(tmp_path))
    yield
    sys.path.remove(str(tmp_path))


def set_architecture(path: Path, name: str) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "architectures": [name]}))


def test_the_embedded_model() -> None:
    model = load_image_model(DEMO_PATH)
    assert model.spec == load_spec(DEMO_PATH)
    assert model.spec.family == "zipar-demo"
    assert model.decode(torch.zeros(2, 24, 24, dtype=torch.int64)).shape == (2, 192, 192, 3)


@pytest.mark.usefixtures("outside_family")
def test_a_family_of_another_package(copy: Path) -> None:
    set_architecture(copy, "OutsideForCausalLM")
    assert architectures()[-1] == "OutsideForCausalLM"
    assert load_spec(copy).family == "outside"
    assert load_image_model(copy).spec.family == "outside"


def test_a_hub_id_from_an_offline_cache(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into_cache(copy, "somebody/emoji", tmp_path / "hub", "v2")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert load_spec("somebody/emoji", "v2") == load_spec(DEMO_PATH)
    check_image_model("somebody/emoji", "v2")
    with pytest.raises(UnusableModelError, match=r"^somebody/emoji: .* no config\.json on the hub"):
        load_spec("somebody/emoji", "v3")


def drop(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_text(text) and None


@pytest.mark.parametrize(
    ("break_it", "problem"),
    [
        (drop("config.json"), "config.json is missing in the folder"),
        (drop("image_model.json"), "it is no image model: it has no image_model.json"),
        (drop("tokenizer.json"), "tokenizer.json is missing in the folder"),
        (drop("vq/model.safetensors"), "vq/model.safetensors is missing in the folder"),
        (write("config.json", "{"), "config.json is not JSON"),
        (write("config.json", "{}"), "its architecture none cannot be served, known are Llama"),
        (
            write("image_model.json", '{"family": "x"}'),
            "image_model.json: family 'x' is unknown, known is 'zipar-demo'",
        ),
    ],
)
def test_what_is_missing_or_unknown_is_told_in_a_line(
    copy: Path, break_it: Callable[[Path], None], problem: str
) -> None:
    break_it(copy)
    with pytest.raises(UnusableModelError) as error:
        check_image_model(copy)
    assert str(error.value).startswith(f"{copy}: {problem}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/folder", "no folder", "a/b/c"])
def test_a_name_without_a_model(name: str) -> None:
    with pytest.raises(UnusableModelError) as error:
        load_spec(name)
    problem = "no such folder, and no config.json on the hub or in its local cache"
    assert str(error.value) == f"{name}: {problem}"
