"""``zipar generate``: its options, its files, and an ImageLLM that is asked for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import zipar_vllm.llm
from server.cli import generate
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.params import ImageOptions


class FakeLLM:
    """Takes notes; refuses a window of 99."""

    asked: dict[str, Any]

    def __init__(self, model: str | None) -> None:
        self.asked = {"model": model}
        FakeLLM.last = self

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def prepare(self, prompts: list[str], seed: int | None, **options: Any) -> None:
        if options.get("window") == 99:
            raise InvalidOptionError.of("window", 99, "1 to 24")

    def generate(self, prompts: list[str], seed: int, **options: Any) -> list[Any]:
        self.asked |= {"prompts": prompts, "seed": seed, **options}
        image = Image.new("RGB", (8, 8))
        return [
            SimpleNamespace(
                prompt=prompt,
                image=image,
                steps=116,
                accepted_drafts=None,
                seconds=0.5,
                params=SimpleNamespace(seed=seed + k, policy="fixed_window", window=4),
            )
            for k, prompt in enumerate(prompts)
        ]


@pytest.fixture(autouse=True)
def fake_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipar_vllm.llm, "ImageLLM", FakeLLM)
    monkeypatch.setattr(generate, "set_environment", lambda quiet: None)


def test_there_is_a_flag_for_every_option() -> None:
    flags = {
        option for action in generate.make_parser()._actions for option in action.option_strings
    }
    assert {"--" + name.replace("_", "-") for name in ImageOptions.model_fields} <= flags


def test_one_picture_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "folder" / "apple.webp"
    words = ["red apple", "-o", str(path), "--seed", "7", "--window", "4", "--min-p", "0.1"]
    generate.main([*words, "--model", "here"])
    with Image.open(path) as picture:
        assert picture.format == "WEBP"
    asked = {"model": "here", "prompts": ["red apple"], "seed": 7, "window": 4, "min_p": 0.1}
    assert FakeLLM.last.asked == asked
    out = capsys.readouterr()
    assert out.out == f"{path}: seed 7, fixed window 4, 116 steps, 0.50 s\n"
    assert out.err.startswith("zipar generate: importing")


def test_several_go_to_a_folder(tmp_path: Path) -> None:
    generate.main(["red apple", "Pizza!", "-o", str(tmp_path / "out"), "--seed", "7"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"red-apple-seed-7.png", "pizza-seed-8.png"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["apple", "-o", "apple.gif"], "output: got apple.gif, allowed is a file that ends in"),
        (["apple", "--window", "99"], "window: got 99"),
        (["apple", "--window", "wide"], "--window: invalid int value"),
        ([], "PROMPT"),
    ],
)
def test_bad_options_are_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        generate.main(words)
    assert message in capsys.readouterr().err
