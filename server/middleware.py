"""What every answer has, whichever route gave it: a request id, and errors in the envelope.

``zipar serve`` adds it by vLLM's ``--middleware``, which puts it around vLLM's own: its answers to
a wrong API key, path or method are no envelopes.
"""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import APIError

HEADER = "X-Request-Id"
_VALID = re.compile(r"[\x21-\x7e]{1,128}")

_WORDS = {
    401: ("the API key is missing or wrong", "invalid_api_key"),
    404: ("there is nothing at this path", "not_found"),
    405: ("this path does not take this method", "method_not_allowed"),
}


class RequestIdMiddleware:
    """ASGI middleware: keeps the client's ``X-Request-Id`` if it is valid, else makes one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _valid_or_new(Headers(scope=scope).get(HEADER))
        scope.setdefault("state", {})["request_id"] = request_id
        error: Message | None = None
        body = bytearray()

        async def send_framed(message: Message) -> None:
            """Hold the body of an error back until it is whole; pass all else on."""
            nonlocal error
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[HEADER] = request_id
                if message["status"] >= 400 and headers.get("content-type") == "application/json":
                    error = message
                    return
            if error is None:
                await send(message)
                return
            body.extend(message.get("body", b""))
            if not message.get("more_body", False):
                await _send_error(error, bytes(body), send)

        await self._app(scope, receive, send_framed)


async def _send_error(start: Message, body: bytes, send: Send) -> None:
    status = start["status"]
    if not _is_envelope(body):
        message, code = _WORDS.get(status, ("the request failed", f"http_{status}"))
        body = json.dumps(APIError(status, message, code=code).body()).encode()
        MutableHeaders(scope=start)["content-length"] = str(len(body))
    await send(start)
    await send({"type": "http.response.body", "body": body})


def _is_envelope(body: bytes) -> bool:
    try:
        data: Any = json.loads(body)
    except ValueError:
        return False
    error = data.get("error") if isinstance(data, dict) else None
    return isinstance(error, dict) and isinstance(error.get("message"), str)


def request_id_of(request: Request) -> str:
    """The request's id, with or without :class:`RequestIdMiddleware` around the route."""
    known: str | None = getattr(request.state, "request_id", None)
    return known or _valid_or_new(request.headers.get(HEADER))


def _valid_or_new(request_id: str | None) -> str:
    if request_id is not None and _VALID.fullmatch(request_id):
        return request_id
    return uuid.uuid4().hex
