"""Errors of the HTTP API, all in OpenAI's envelope and none with a stack trace."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

logger = logging.getLogger(__name__)

ALIASES = {"cfg_scale": "guidance_scale"}
"""Other names of fields, which a JSON schema has no place for."""

MAX_SHOWN = 80
"""Characters of a bad value that an error message repeats."""


class APIError(Exception):
    """A failure a client is told about.

    Args:
        status: HTTP status.
        message: What came, and what is allowed.
        param: The field at fault, if one is.
        code: Machine-readable reason.
        retry_after: Seconds after which a retry may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The envelope."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The envelope as an HTTP response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return JSONResponse(self.body(), status_code=self.status, headers=headers)


def invalid(param: str, got: object, allowed: str) -> APIError:
    """A 400 that names the field, what came and what is allowed."""
    return APIError(
        400, f"{param}: got {shown(got)}, allowed is {allowed}", param=param, code="invalid_value"
    )


def as_api_error(error: Exception) -> APIError:
    """What the client is told of any failure; of an unforeseen one the log has the details."""
    if isinstance(error, APIError):
        return error
    logger.error("image request failed", exc_info=error)
    return APIError(500, "the image could not be generated", code="internal_error")


def from_validation(error: ValidationError, schema: Mapping[str, Any]) -> APIError:
    """The first complaint of pydantic, as a 400.

    Args:
        error: What pydantic found.
        schema: JSON schema of the body, which knows what each field allows.
    """
    first = error.errors(include_url=False)[0]
    names = [str(part) for part in first["loc"]]
    param = ".".join(names) or "body"
    if first["type"] == "missing":
        return APIError(400, f"{param}: missing, it is required", param=param, code="missing")
    return invalid(param, first["input"], _allowed(names, schema) or first["msg"])


def _allowed(names: list[str], schema: Mapping[str, Any]) -> str | None:
    """What a field allows, in words, from its JSON schema."""
    for name in names:
        schema = _without_null(schema.get("properties", {}).get(ALIASES.get(name, name), {}))
    parts = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "a text",
        "object": "an object",
    }
    if "enum" in schema:
        return " or ".join(str(value) for value in schema["enum"])
    words = parts.get(str(schema.get("type")))
    low = schema.get("minimum", schema.get("minLength"))
    high = schema.get("maximum", schema.get("maxLength"))
    if "exclusiveMinimum" in schema:
        return f"{words} above {schema['exclusiveMinimum']:g} and up to {high:g}"
    if words and high is not None:
        unit = " characters" if schema.get("type") == "string" else ""
        return f"{words}, {low or 0} to {high}{unit}"
    return words


def _without_null(field: Mapping[str, Any]) -> Mapping[str, Any]:
    """A field's schema without the null that every optional field allows."""
    choices = [choice for choice in field.get("anyOf", [field]) if choice.get("type") != "null"]
    return choices[0] if choices else {}


def shown(value: object) -> str:
    """A bad value as an error message repeats it: short, whatever came."""
    if isinstance(value, str) and len(value) > MAX_SHOWN:
        return f"a text of {len(value)} characters"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
