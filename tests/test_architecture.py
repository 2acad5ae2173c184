"""Who may import whom, and how long a file may be: what `docs` say about the layout, checked.

The rules read source, not running modules, so they hold for imports inside functions too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("zipar_vllm", "server")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 75

# What the modules below a name may import of ours; the longest name that fits counts.
BASE = ("zipar_vllm.core", "zipar_vllm.errors", "zipar_vllm.version")
OPTIONS = ("zipar_vllm.params", "zipar_vllm.progress")
MODELS = ("zipar_vllm.attention", "zipar_vllm.models")
DECODING = ("zipar_vllm.decoding", "zipar_vllm.prepare")
MAY_IMPORT = {
    "zipar_vllm": ("zipar_vllm.llm", *OPTIONS, "zipar_vllm.version"),
    "zipar_vllm.core": ("zipar_vllm.core",),
    "zipar_vllm.errors": (),
    "zipar_vllm.version": (),
    "zipar_vllm.params": BASE,
    "zipar_vllm.progress": BASE,
    "zipar_vllm.attention": (*BASE, *OPTIONS, "zipar_vllm.attention"),
    "zipar_vllm.models": (*BASE, *OPTIONS, "zipar_vllm.models"),
    "zipar_vllm.decoding": (*BASE, *OPTIONS, *MODELS, *DECODING),
    "zipar_vllm.prepare": (*BASE, *OPTIONS, *MODELS, *DECODING),
    "zipar_vllm.engine": (*BASE, *OPTIONS, *MODELS, *DECODING, "zipar_vllm.engine"),
    "zipar_vllm.llm": (*BASE, *OPTIONS, *MODELS, *DECODING, "zipar_vllm.engine"),
    "zipar_vllm.plugin": ("zipar_vllm.version",),
    "server": (*BASE, *OPTIONS, *MODELS, "zipar_vllm.prepare", "server"),
}

# The server's composition root: where an engine is made, it is known.
COMPOSITION_ROOT = ("server.cli", "server.plugin")
ROOT_ONLY = ("zipar_vllm.engine", "zipar_vllm.llm")

# vLLM's names, and the modules that name them.
VLLM_API = ("zipar_vllm.engine.vllm_api", "server.vllm_server", "zipar_vllm.version")


@dataclass(frozen=True)
class Import:
    """One imported module or name, as a dotted path."""

    path: Path
    line: int
    importer: str
    name: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.importer} imports {self.name}"


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports_of(path: Path) -> Iterator[Import]:
    """Every import in a file, `from a import b` as `a.b` where that is a module of ours."""
    importer = module_name(path)
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, importer, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                ours = base.split(".")[0] in PACKAGES
                name = deeper if not ours or is_module(deeper) else base
                yield Import(path, node.lineno, importer, name)


def below(name: str, *parents: str) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def is_ours(name: str) -> bool:
    return below(name, *PACKAGES)


def all_imports() -> list[Import]:
    found = (found for path in sources(*PACKAGES) for found in imports_of(path))
    return list(dict.fromkeys(found))


def offending(found: list[Import]) -> str:
    return "\n" + "\n".join(map(str, found)) if found else ""


def allowed(importer: str) -> tuple[str, ...]:
    rule = max((name for name in MAY_IMPORT if below(importer, name)), key=len)
    return MAY_IMPORT[rule] + (ROOT_ONLY if below(importer, *COMPOSITION_ROOT) else ())


def test_layers_import_only_what_lies_below_them() -> None:
    bad = [
        found
        for found in all_imports()
        if is_ours(found.name) and not below(found.name, *allowed(found.importer))
    ]
    assert not bad, offending(bad)


def test_nothing_imports_the_server() -> None:
    others = ("zipar_vllm", "training")
    bad = [
        found
        for path in sources(*others)
        for found in imports_of(path)
        if below(found.name, "server")
    ]
    assert not bad, offending(bad)


def test_vllm_is_named_in_one_file_of_the_engine_and_one_of_the_server() -> None:
    bad = [
        found
        for found in all_imports()
        if below(found.name, "vllm") and found.importer not in VLLM_API
    ]
    assert not bad, offending(bad)


def test_triton_kernels_import_torch_and_triton_only() -> None:
    bad = [
        found
        for path in sources("zipar_vllm/attention")
        if "triton" in path.stem
        for found in imports_of(path)
        if not below(found.name, "torch", "triton", "__future__", "typing", "math")
    ]
    assert not bad, offending(bad)


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


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import vllm.v1.core", ["vllm.v1.core"]),
        ("from vllm.v1 import core", ["vllm.v1.core"]),
        ("from vllm import v1", ["vllm.v1"]),
        ("def f():\n    import server.cli", ["server.cli"]),
        ("from .grid import Grid", ["zipar_vllm.core.grid"]),
        ("from . import grid", ["zipar_vllm.core.grid"]),
        ("from ..engine import client", ["zipar_vllm.engine.client"]),
        ("from zipar_vllm.core.grid import Grid", ["zipar_vllm.core.grid"]),
    ],
)
def test_the_reader_of_imports_resolves_every_form(
    source: str, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("zipar_vllm/core/grid.py", "zipar_vllm/engine/client.py"):
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).write_text("")
    path = tmp_path / "zipar_vllm/core/example.py"
    path.write_text(source)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert [found.name for found in imports_of(path)] == names
