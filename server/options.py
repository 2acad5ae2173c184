"""Options of the image endpoint, given as ``zipar serve`` flags or environment variables.

They travel by the environment because vLLM may start several API server processes.
"""

from __future__ import annotations

import argparse
import os
from typing import Annotated, Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "ZIPAR_"


class ServerOptions(BaseSettings):
    """Limits and places; each is also a variable ``ZIPAR_...``.

    Attributes:
        max_active_images: Images accepted at a time, waiting ones included; more get a 503.
        image_timeout: Seconds an image may take, 0 for no limit.
        max_body_bytes: Largest request body.
        storage_dir: Folder for ``response_format: url``; empty turns it off.
        storage_seconds: Time a stored picture is served for.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    max_active_images: Annotated[int, Field(gt=0)] = 256
    image_timeout: Annotated[float, Field(ge=0)] = 0.0
    max_body_bytes: Annotated[int, Field(gt=0)] = 1 << 20
    storage_dir: str = ""
    storage_seconds: Annotated[float, Field(gt=0)] = 3600.0


def flag_of(name: str) -> str:
    """The command line's name of an option."""
    return "--" + name.replace("_", "-")


def take_flags(arguments: list[str]) -> list[str]:
    """Put ``--max-active-images`` and the like into the environment; return the other arguments.

    Raises:
        ValueError: an option, given here or in the environment, is none of those allowed.
    """
    parser = argparse.ArgumentParser(prog="zipar serve", add_help=False, allow_abbrev=False)
    for name in ServerOptions.model_fields:
        parser.add_argument(flag_of(name), dest=name)
    known, others = parser.parse_known_args(arguments)
    given: dict[str, Any] = {k: v for k, v in vars(known).items() if v is not None}
    os.environ.update({PREFIX + name.upper(): value for name, value in given.items()})
    try:
        ServerOptions()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise ValueError(f"{flag_of(name)}: got {first['input']!r}, {first['msg']}") from None
    return others
