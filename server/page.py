"""The web page: three static files, kept in memory, under a policy that runs nothing else."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

STATIC = Path(__file__).with_name("static")

# The page's own script and style, and it talks to this server only.
POLICY = "; ".join(
    [
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)

router = APIRouter(include_in_schema=False)


def _add(path: str, file: str, media_type: str) -> None:
    content = (STATIC / file).read_bytes()
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}

    async def answer() -> Response:
        return Response(content, media_type=media_type, headers=headers)

    router.add_api_route(path, answer, methods=["GET"])


_add("/", "index.html", "text/html; charset=utf-8")
_add("/page.css", "page.css", "text/css; charset=utf-8")
_add("/page.js", "page.js", "text/javascript; charset=utf-8")
