"""Errors of the HTTP API, all in OpenAI's envelope and none with a stack trace."""

from __future__ import annotations

import logging
from typing import Any

from fastapi.responses import JSONResponse

from zipar_vllm.errors import EngineUnavailableError, ImageTooLargeError, InvalidOptionError
from zipar_vllm.params import PolicyOptions

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1
"""What clients of a server that is full or stops are asked to wait: about an image's time."""


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


class DeadlineError(Exception):
    """An image took longer than it may.

    Args:
        seconds: What it was allowed.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the image took more than {seconds:g} s")


def invalid(param: str, got: object, allowed: str) -> APIError:
    """A 400 that names the field, what came and what is allowed."""
    return as_api_error(InvalidOptionError.of(param, got, allowed))


def overloaded(message: str) -> APIError:
    """A 503 of a server that is full."""
    return APIError(503, message, code="overloaded", retry_after=RETRY_SECONDS)


def stopping() -> APIError:
    """A 503 of a server that shuts down."""
    message = "the server is shutting down"
    return APIError(503, message, code="unavailable", retry_after=RETRY_SECONDS)


def as_api_error(error: Exception) -> APIError:
    """Map any exception to the error sent to the client: the one table of them.

    Unexpected ones are logged and become a 500, whose message tells nothing of the server.
    """
    match error:
        case APIError():
            return error
        case InvalidOptionError():
            nested = error.field in PolicyOptions.model_fields
            param = f"zipar.{error.field}" if nested else error.field
            return APIError(400, f"{param}: {error.problem}", param=param, code=error.code)
        case ImageTooLargeError():
            return APIError(400, str(error), param="size", code="image_too_large")
        case DeadlineError():
            return APIError(504, str(error), code="deadline_exceeded")
        case EngineUnavailableError(dead=False):
            return stopping()
    logger.error("image request failed", exc_info=error)
    return APIError(500, "the image could not be generated", code="internal_error")
