"""Errors of the HTTP API, all in OpenAI's envelope and none with a stack trace."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

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


def from_validation(error: ValidationError) -> APIError:
    """The first complaint of pydantic, as a 400."""
    first = error.errors(include_url=False)[0]
    param = ".".join(str(part) for part in first["loc"]) or "body"
    if first["type"] == "missing":
        return APIError(400, f"{param}: missing, it is required", param=param, code="missing")
    message = first["msg"][:1].lower() + first["msg"][1:]
    return APIError(
        400, f"{param}: got {shown(first['input'])}, {message}", param=param, code="invalid_value"
    )


def shown(value: object) -> str:
    """A bad value as an error message repeats it: short, whatever came."""
    if isinstance(value, str) and len(value) > MAX_SHOWN:
        return f"a text of {len(value)} characters"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
