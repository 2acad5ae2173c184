"""Another vLLM is refused by its version, also one whose names have moved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each way in, as a process of its own: what a user or vLLM itself imports first.
WAYS_IN = {
    "plugin": "from zipar_vllm.plugin import register; register()",
    "engine": "import zipar_vllm.engine.scheduler",
    "worker": "import zipar_vllm.engine.worker",
    "serve": "from server.cli.main import main; main(['serve'])",
}


def run_beside(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": f"{folder}:{ROOT}", "ZIPAR_NO_PRELOAD": "1", "PATH": ""}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def make_vllm(folder: Path, version: str) -> None:
    """A vllm package with a version and nothing else: every name of it has moved."""
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text(f"__version__ = {version!r}\n")


@pytest.mark.parametrize("way", WAYS_IN)
@pytest.mark.parametrize("version", ["0.31.0", "0.33.0"])
def test_another_vllm_is_refused_with_both_versions_named(
    tmp_path: Path, way: str, version: str
) -> None:
    make_vllm(tmp_path, version)
    done = run_beside(tmp_path, WAYS_IN[way])
    assert done.returncode != 0
    assert f"zipar_vllm needs vLLM 0.32.x, found {version}" in done.stderr


@pytest.mark.parametrize("version", ["1.0", "unknown", "0.320.1"])
def test_what_is_no_release_of_the_supported_one_is_refused(tmp_path: Path, version: str) -> None:
    make_vllm(tmp_path, version)
    done = run_beside(tmp_path, WAYS_IN["plugin"])
    assert f"found {version}" in done.stderr


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cpu"])
def test_supported_versions(tmp_path: Path, version: str) -> None:
    make_vllm(tmp_path, version)
    done = run_beside(tmp_path, WAYS_IN["plugin"])
    assert done.returncode == 0, done.stderr


def test_a_missing_vllm_is_told(tmp_path: Path) -> None:
    (tmp_path / "vllm.py").write_text("raise ImportError('no module named vllm')\n")
    done = run_beside(tmp_path, WAYS_IN["plugin"])
    assert "zipar_vllm needs vLLM 0.32.x, found none" in done.stderr
