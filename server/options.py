"""Options of the image endpoint, given as ``zipar serve`` flags or environment variables.

They travel by the environment because vLLM may start several API server processes.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, fields
from typing import Any

PREFIX = "ZIPAR_"


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Limits and places.

    Attributes:
        max_active_images: Images accepted at a time, waiting ones included; more get a 503.
        image_timeout: Seconds an image may take, 0 for no limit.
        max_body_bytes: Largest request body.
        storage_dir: Folder for ``response_format: url``; empty turns it off.
        storage_seconds: Time a stored picture is served for.
    """

    max_active_images: int = 256
    image_timeout: float = 0.0
    max_body_bytes: int = 1 << 20
    storage_dir: str = ""
    storage_seconds: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("max_active_images", "max_body_bytes", "storage_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, allowed is more than 0")
        if self.image_timeout < 0:
            raise ValueError(f"image_timeout: got {self.image_timeout}, allowed is 0 or more")

    @classmethod
    def from_environment(cls) -> ServerOptions:
        """Read ``ZIPAR_...`` variables; what is not set keeps its default.

        Raises:
            ValueError: a variable does not hold a number where one is needed.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            text = os.environ.get(PREFIX + field.name.upper())
            if text is None:
                continue
            try:
                convert: Any = type(field.default)
                values[field.name] = convert(text)
            except ValueError:
                raise ValueError(
                    f"{PREFIX}{field.name.upper()}: got {text!r}, allowed is a number"
                ) from None
        return cls(**values)

    @staticmethod
    def take_flags(arguments: list[str]) -> list[str]:
        """Put ``--max-active-images`` and the like into the environment; return the rest."""
        parser = argparse.ArgumentParser(prog="zipar serve", add_help=False, allow_abbrev=False)
        for field in fields(ServerOptions):
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, type=type(field.default), dest=field.name)
        known, rest = parser.parse_known_args(arguments)
        for name, value in vars(known).items():
            if value is not None:
                os.environ[PREFIX + name.upper()] = str(value)
        return rest
