"""The table of commands."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from server.cli import main as cli
from zipar_vllm.version import __version__


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"zipar_vllm {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())  # lines may break anywhere
    assert all(name in text and summary in text for name, summary in cli.COMMANDS.items())


@pytest.mark.parametrize("arguments", [[], ["draw"], ["--verbose"]])
def test_anything_else_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)


def test_a_command_gets_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setitem(sys.modules, "server.cli.serve", SimpleNamespace(main=calls.append))
    cli.main(["serve", "--help", "MODEL"])
    assert calls == [["--help", "MODEL"]]
