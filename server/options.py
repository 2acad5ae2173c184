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
        nearest_size: Draw the nearest size where the model cannot draw the one asked for.
        pixel_device: Where pixels are rendered, such as ``cpu`` or ``cuda:1``; empty is the GPU if
            there is one.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    max_active_images: Annotated[int, Field(gt=0)] = 256
    image_timeout: Annotated[float, Field(ge=0)] = 0.0
    max_body_bytes: Annotated[int, Field(gt=0)] = 1 << 20
    storage_dir: str = ""
    storage_seconds: Annotated[float, Field(gt=0)] = 3600.0
    nearest_size: bool = False
    pixel_device: Annotated[str, Field(pattern=r"^((cpu|cuda|xpu|mps)(:\d+)?)?$")] = ""


def flag_of(name: str) -> str:
    """The command line's name of an option."""
    return "--" + name.replace("_", "-")


def usage_of(name: str) -> str:
    """An option as the command line's usage shows it."""
    is_switch = ServerOptions.model_fields[name].annotation is bool
    return flag_of(name) if is_switch else f"{flag_of(name)} {name.upper()}"


def take_flags(arguments: list[str]) -> list[str]:
    """Put ``--max-active-images`` and the like into the environment; return the other arguments.

    Raises:
        ValueError: an option, given here or in the environment, is none of those allowed.
    """
    parser = argparse.ArgumentParser(prog="zipar serve", add_help=False, allow_abbrev=False)
    for name, field in ServerOptions.model_fields.items():
        if field.annotation is bool:
            parser.add_argument(flag_of(name), dest=name, action="store_const", const="true")
        else:
            parser.add_argument(flag_of(name), dest=name)
    known, others = parser.parse_known_args(arguments)
    given: dict[str, Any] = {k: v for k, v in vars(known).items() if v is not None}
    try:
        ServerOptions(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise ValueError(f"{flag_of(name)}: got {first['input']!r}, {first['msg']}") from None
    os.environ.update({PREFIX + name.upper(): value for name, value in given.items()})
    return others
