"""What is written of the API is what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.options import ServerOptions, flag_of
from server.prepare import parse_request
from server.routes import router
from server.schemas import UNSUPPORTED, request_schema
from zipar_vllm.errors import InvalidOptionError

API = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
OPTIONS = request_schema()["properties"]


def test_every_field_is_documented() -> None:
    zipar = OPTIONS["zipar"]["anyOf"][0]["properties"]
    names = [*(name for name in OPTIONS if name != "zipar"), *(f"zipar.{name}" for name in zipar)]
    assert [name for name in names if f"`{name}`" not in API] == []


def test_every_refused_field_is_documented() -> None:
    assert [name for name in UNSUPPORTED if f"`{name}`" not in API] == []


def test_every_option_is_documented() -> None:
    flags = [flag_of(name) for name in ServerOptions.model_fields]
    assert [flag for flag in flags if f"| `{flag}` |" not in API] == []


def test_every_error_status_is_documented() -> None:
    statuses = [status for status in range(400, 600) if f"\n| {status} | " in API]
    declared = {
        int(status)
        for route in router.routes
        if getattr(route, "path", "") == "/v1/images/generations"
        for status in route.responses
    }
    assert {200, *statuses} == {*declared, 501}  # 501 is what the other two routes answer


@pytest.mark.parametrize(
    "name", ["n", "seed", "guidance_scale", "temperature", "top_k", "top_p", "min_p"]
)
def test_documented_limits_are_those_that_hold(name: str) -> None:
    schema = OPTIONS[name]["anyOf"][0]  # of a seed, not of a list of them
    high = schema["maximum"]
    parse_request({"prompt": "x", name: high})
    with pytest.raises(InvalidOptionError, match=f"{name}: got .*, allowed is"):
        parse_request({"prompt": "x", name: high + 1})
    line = next(line for line in API.splitlines() if line.startswith(f"| `{name}`"))
    words = "2^63 - 1" if name == "seed" else f"{high:,.0f}"
    assert f"to {words}" in line
