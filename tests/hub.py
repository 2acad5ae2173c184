"""A folder as the Hugging Face hub's cache would hold it."""

from __future__ import annotations

import shutil
from pathlib import Path


def put_into_cache(folder: Path, repository: str, cache: Path, revision: str = "main") -> None:
    """Copy a model's folder into a cache, as one that was downloaded."""
    home = cache / f"models--{repository.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / revision).write_text(commit)
