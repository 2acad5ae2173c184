"""Pictures kept for ``response_format: url``: unguessable names, and gone after a while."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path
from typing import get_args

from .options import ServerOptions
from .pixels import Format

_NAME = re.compile(rf"[A-Za-z0-9_-]{{32}}\.({'|'.join(get_args(Format))})")


class ImageStore:
    """A folder of pictures.

    Args:
        folder: Created if missing.
        seconds: Age at which a picture is no longer served, and deleted at the next chance.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder = folder
        self._seconds = seconds
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def from_options(cls, options: ServerOptions) -> ImageStore | None:
        """The store the options ask for, or None."""
        if not options.storage_dir:
            return None
        return cls(Path(options.storage_dir), options.storage_seconds)

    def save(self, file: bytes, extension: str) -> str:
        """Keep a file; returns the name to ask for."""
        self._delete_expired()
        name = f"{secrets.token_urlsafe(24)}.{extension}"
        (self._folder / name).write_bytes(file)
        return name

    def find(self, name: str) -> Path | None:
        """The file of that name, or None if there is none, or no longer."""
        if not _NAME.fullmatch(name):  # nothing but names of ours: no paths
            return None
        path = self._folder / name
        return path if path.is_file() and not self._expired(path) else None

    def _expired(self, path: Path) -> bool:
        return time.time() - path.stat().st_mtime > self._seconds

    def _delete_expired(self) -> None:
        for path in self._folder.iterdir():
            if _NAME.fullmatch(path.name) and self._expired(path):
                path.unlink(missing_ok=True)
