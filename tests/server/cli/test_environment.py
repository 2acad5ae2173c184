"""What a process is given before vLLM is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.cli.environment import say, starting
from zipar_vllm.engine import arguments

CODE = """
import json, os, sys
from server.cli.environment import set_environment
set_environment()
print(json.dumps({"environment": dict(os.environ), "arguments": sys.argv[1:]}))
"""


def run(**extra: str) -> dict[str, dict[str, str]]:
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    command = [sys.executable, "-c", CODE, "--an", "argument"]
    done = subprocess.run(command, env=environment | extra, capture_output=True, check=True)
    result: dict[str, dict[str, str]] = json.loads(done.stdout)
    assert result["arguments"] == ["--an", "argument"]
    return result["environment"]


def test_defaults_give_way_to_the_users_own() -> None:
    environment = run(OMP_NUM_THREADS="7", ZIPAR_NO_PRELOAD="1")
    assert environment["OMP_NUM_THREADS"] == "7"
    assert environment["VLLM_PLUGINS"] == "zipar,zipar_images"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert "LD_PRELOAD" not in environment


@pytest.mark.skipif(
    not Path(sys.prefix, "lib", "libiomp5.so").exists(), reason="Intel's OpenMP is not installed"
)
def test_openmp_is_preloaded_once() -> None:
    libraries = run()["LD_PRELOAD"].split(":")
    assert [Path(library).name for library in libraries] == ["libiomp5.so"]


def test_say_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    say("serve", "importing")
    assert capsys.readouterr().err == "zipar serve: importing\n"


@pytest.mark.parametrize(
    ("native", "dtype", "said"),
    [
        (True, None, "in the model's dtype"),
        (True, "float32", "in float32"),
        (False, "auto", "in float32 (this CPU has no instructions for bfloat16)"),
        (False, "bfloat16", "in bfloat16"),
    ],
)
def test_the_start_tells_the_dtype(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: str | None, said: str
) -> None:
    monkeypatch.setattr(arguments, "has_bfloat16", lambda: native)
    assert starting(dtype) == f"starting the engine {said}"
