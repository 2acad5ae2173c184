"""The routes: parse, hand over, answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from base64 import b64encode
from collections.abc import AsyncGenerator, Coroutine
from pathlib import Path
from typing import Any, TypeVar, cast

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from pydantic import ValidationError

from . import vllm_server
from .access_log import ABANDONED, Entry
from .errors import APIError, as_api_error, from_validation, invalid, shown
from .jobs import ImageJob
from .middleware import request_id_of
from .schemas import ErrorEnvelope, ImageGenerationRequest, ImagesResponse, request_schema
from .service import ImageService
from .streaming import EventStream, stream_events

T = TypeVar("T")

router = APIRouter()

PAGE = (Path(__file__).with_name("static") / "index.html").read_text(encoding="utf-8")


def _policy(page: str) -> str:
    """The page's own script and style run and nothing else, and it talks to this server only."""

    def hashes(tag: str) -> str:
        texts = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        return " ".join(f"'sha256-{b64encode(digest).decode()}'" for digest in digests)

    rules = {
        "default-src": "'self'",
        "script-src": hashes("script"),
        "style-src": hashes("style"),
        "img-src": "'self' data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


PAGE_POLICY = _policy(PAGE)


@router.post(
    "/v1/images/generations",
    response_model=ImagesResponse,
    responses={
        200: {"content": {"text/event-stream": {}}},
        **{status: {"model": ErrorEnvelope} for status in (400, 401, 404, 413, 500, 503, 504)},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": request_schema()}},
        }
    },
)
async def generate_images(request: Request) -> Response:
    """Draw pictures of a prompt."""
    service = service_of(request)
    entry = Entry(request_id_of(request))
    try:
        body = await _body(request, service)
        _check_model(request, body.model)
        entry.job = job = service.prepare(body)
        service.admit(job)
    except Exception as error:
        return _failed(entry, error)
    if body.stream:
        return await _stream(request, service, job, body.partial_images or 0, entry)
    try:
        work = service.generate(job, str(request.base_url))
        answer = await unless_disconnected(request, work)
    except Exception as error:
        return _failed(entry, error)
    finally:
        service.release(job)
    if answer is None:
        entry.write()
        return Response(status_code=ABANDONED)  # nobody reads it
    entry.status, entry.steps = 200, answer.zipar.steps
    entry.write()
    return JSONResponse(answer.model_dump(exclude_none=True))


async def _stream(
    request: Request, service: ImageService, job: ImageJob, partial_images: int, entry: Entry
) -> Response:
    """Answer with events, once it is clear that the engine takes the image."""

    def finish() -> None:
        service.release(job)
        entry.write()

    events = stream_events(service, job, partial_images, entry)
    try:
        first = await unless_disconnected(request, _first(events))
    except Exception as error:
        service.release(job)
        return _failed(entry, error)
    except BaseException:
        finish()
        raise
    if first is None:
        await events.aclose()
        finish()
        return Response(status_code=ABANDONED)
    return EventStream(first, events, finish)


async def _first(events: AsyncGenerator[str, None]) -> str:
    return await anext(events)


@router.post("/v1/images/edits")
@router.post("/v1/images/variations")
async def unsupported(request: Request) -> Response:
    """Say that the model draws from text only."""
    name = request.url.path.rsplit("/", 1)[-1]
    message = f"{name} are not supported: the model draws pictures from text only"
    return APIError(501, message, code="unsupported").response()


@router.get("/images/{name}")
async def stored_image(name: str, request: Request) -> Response:
    """A picture kept for ``response_format: url``."""
    store = service_of(request).store
    path = store.find(name) if store else None
    if path is None:
        return APIError(404, "no such image, or no longer", code="not_found").response()
    return FileResponse(path)


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The web page; kept in memory, so that it always is what its policy was made for."""
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": PAGE_POLICY})


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The served names, each with what the image model offers."""
    models = await vllm_server.list_models(request.app.state)
    spec = service_of(request).model.spec
    defaults = spec.defaults
    facts = {
        "family": spec.family,
        "sizes": list(spec.grids),
        "windows": {s: {"min": 1, "max": grid.columns} for s, grid in spec.grids.items()},
        "defaults": {
            "window": defaults.window,
            "guidance_scale": defaults.guidance_scale,
            "temperature": defaults.temperature,
            "top_k": defaults.top_k,
            "top_p": defaults.top_p,
        },
        **spec.details,
    }
    for model in models["data"]:
        model["zipar"] = facts
        model.pop("root", None)  # a path on the server
    return JSONResponse(models)


def service_of(request: Request) -> ImageService:
    """The service the plugin put into the application's state."""
    return cast(ImageService, request.app.state.zipar_images)


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Await some work, but give it up when the client goes away; None then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, service: ImageService) -> ImageGenerationRequest:
    limit = service.options.max_body_bytes
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise APIError(413, f"the body is larger than {limit} bytes", code="body_too_large")
    try:
        data = json.loads(bytes(content))
    except (ValueError, RecursionError):
        raise APIError(400, "the body is not JSON", code="invalid_json") from None
    if not isinstance(data, dict):
        raise invalid("body", data, "a JSON object")
    try:
        return ImageGenerationRequest.model_validate(data)
    except ValidationError as error:
        raise from_validation(error, service.schema) from None


def _check_model(request: Request, name: str | None) -> None:
    served = vllm_server.served_names(request.app.state)
    if name and name not in served:
        message = f"model: got {shown(name)}, served is {' or '.join(served)}"
        raise APIError(404, message, param="model", code="model_not_found")


def _failed(entry: Entry, error: Exception) -> Response:
    failure = as_api_error(error)
    entry.status = failure.status
    entry.write()
    return failure.response()
