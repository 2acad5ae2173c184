"""The layer rules, and how long a file may be: what the docs say about the layout, checked.

Who may import whom stands in ``pyproject.toml`` (``[tool.importlinter]``); import-linter reads
source, not running modules, so the rules hold for imports inside functions too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PACKAGES = ("zipar_vllm", "server")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 75
LINTER = Path(sys.executable).with_name("lint-imports")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(LINTER), "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_layers_import_only_what_lies_below_them() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "code", "contract"),
    [
        ("zipar_vllm/core/grid.py", "import zipar_vllm.params", "Layers"),
        ("zipar_vllm/models/base.py", "from zipar_vllm.decoding import job", "Layers"),
        ("zipar_vllm/decoding/job.py", "def f():\n    import vllm", "vLLM is named"),
        ("server/routes.py", "from vllm import LLM", "vLLM is named"),
        ("server/routes.py", "from zipar_vllm.engine import client", "The server sees"),
        ("zipar_vllm/decoding/batch.py", "from zipar_vllm.attention import select", "Decoding"),
        ("training/model.py", "import server.cli.main", "Nothing imports"),
    ],
)
def test_every_rule_can_be_broken(file: str, code: str, contract: str, tmp_path: Path) -> None:
    """In a copy of the sources, so that a rule that guards nothing is noticed."""
    for path in ROOT.glob("*/**/*.py"):
        name = path.relative_to(ROOT)
        if name.parts[0] in (*PACKAGES, "training"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(path.read_text())
    with (tmp_path / file).open("a") as source:
        source.write(f"\n{code}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert any(
        line.startswith(contract) and "BROKEN" in line for line in done.stdout.splitlines()
    ), done.stdout


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_triton_kernels_import_torch_and_triton_only() -> None:
    """So that they run, and are measured, where nothing else is installed."""
    allowed = {"torch", "triton", "__future__", "typing", "math", "dataclasses", "interface"}
    for path in sources("zipar_vllm/attention"):
        if "triton" not in path.stem:
            continue
        tree = ast.parse(path.read_text())
        typing_only = [node for node in tree.body if isinstance(node, ast.If)]
        assert [ast.unparse(node.test) for node in typing_only] in ([], ["TYPE_CHECKING"])
        tree.body = [node for node in tree.body if node not in typing_only]
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                module = node.module or node.names[0].name
                names = ["triton" if node.level and "triton" in module else module]
            assert {name.split(".")[0] for name in names} <= allowed, path


def test_files_stay_readable_in_one_sitting() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in sources(*PACKAGES)}
    long = [f"{path.relative_to(ROOT)}: {n}" for path, n in lengths.items() if n > MAX_FILE_LINES]
    assert not long, f"more than {MAX_FILE_LINES} lines: {long}"


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the signature to the end, the docstring not counted."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def test_functions_stay_about_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {body_lines(node)}"
        for path in sources(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and body_lines(node) > MAX_FUNCTION_LINES
    ]
    assert not long, f"more than {MAX_FUNCTION_LINES} lines: {long}"
