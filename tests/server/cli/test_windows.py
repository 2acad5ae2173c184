"""``zipar windows``: its options, and the files it leaves, over a fake model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import zipar_vllm.llm
from server.cli import windows
from tests.test_windows import FakeLLM


class ClosingLLM(FakeLLM):
    """Notes what it is made with."""

    made: dict[str, Any]

    def __init__(self, model: str | None, **engine_args: Any) -> None:
        super().__init__()
        ClosingLLM.made = {"model": model, **engine_args, "closed": False}

    def close(self) -> None:
        ClosingLLM.made["closed"] = True


@pytest.fixture(autouse=True)
def fake_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipar_vllm.llm, "ImageLLM", ClosingLLM)
    monkeypatch.setattr(windows, "set_environment", lambda quiet: None)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red apple\n\n  house \npizza\n")
    return ["--prompts", str(prompts), "-o", str(tmp_path / "out"), "--windows", "4", "2"]


def test_what_it_leaves(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine_args = ["--engine-args", '{"max_model_len": 99}']
    windows.main(["here", *words, "--bound", "1.5", "--temperature", "0.5", *engine_args])
    assert ClosingLLM.made == {"model": "here", "max_model_len": 99, "closed": True}
    folder = tmp_path / "out"
    found = json.loads((folder / "windows.json").read_text())
    assert [record["window"] for record in found["windows"]] == [8, 4, 2]
    assert found["narrowest"] == {"window": 2, "adaptive": False}
    told = (found["model"], found["seed"], found["options"], found["bound"])
    assert told == ("here", 1, {"temperature": 0.5}, 1.5)
    text = (folder / "windows.md").read_text()
    assert "3 pictures per window, one at a time, seeds from 1." in text
    assert "at most 1.5 nats per token, its interval included: 2." in text
    assert capsys.readouterr().out == text
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width == 3 * 166 + 6
    assert len(list(folder.glob("*/*.png"))) == 9
    drawn = json.loads((folder / "window-4" / "0002.json").read_text())["request"]
    assert (drawn["prompt"], drawn["seed"], drawn["temperature"]) == ("house", 2, 0.5)


def test_without_a_bound_no_window_is_named(words: list[str], tmp_path: Path) -> None:
    windows.main(words)
    assert ClosingLLM.made["model"] is None
    assert "narrowest" not in (tmp_path / "out" / "windows.md").read_text()
    assert "narrowest" not in json.loads((tmp_path / "out" / "windows.json").read_text())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--windows", "9"], "window: got 9"),
        (["--bound", "-1"], "allowed is a number, 0 or more"),
        (["--bound", "nan"], "allowed is a number, 0 or more"),
        (["--engine-args", "[1]"], "allowed is a JSON object"),
        (["--engine-args", "{"], "no JSON"),
        (["--prompts", "nowhere.txt"], "prompts: "),
        (["--prompts", "/dev/null"], "prompts: got [], allowed is two or more"),
        (["--drafts", "4"], "unrecognized arguments: --drafts"),
    ],
)
def test_bad_options_are_named(
    words: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        windows.main([*words, *more])
    assert message in capsys.readouterr().err
