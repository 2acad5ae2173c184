"""The routes: parse, hand over, answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Coroutine
from pathlib import Path
from typing import Any, TypeVar, cast

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from . import access_log
from .errors import APIError, invalid
from .jobs import ImageJob, parse_request
from .schemas import ImageGenerationRequest, ImagesResponse
from .service import ImageService
from .streaming import stream_events

T = TypeVar("T")

router = APIRouter()

PAGE = Path(__file__).with_name("static") / "index.html"


@router.post("/v1/images/generations", response_model=ImagesResponse)
async def generate_images(request: Request) -> Response:
    """Draw pictures of a prompt."""
    service = service_of(request)
    try:
        body = await _body(request, service.options.max_body_bytes)
        job = service.prepare(body)
        service.admit(job)
    except APIError as error:
        return error.response()
    if body.stream:
        events = _streamed(service, job, body.partial_images or 0, request)
        return StreamingResponse(events, media_type="text/event-stream")
    start = time.monotonic()
    try:
        work = service.generate(job, str(request.base_url))
        answer = await unless_disconnected(request, work)
    except APIError as error:
        _log(request, job, error.status, start)
        return error.response()
    finally:
        service.release(job)
    if answer is None:
        _log(request, job, 499, start)
        return Response(status_code=499)  # nobody reads it
    _log(request, job, 200, start, answer.zipar.steps)
    return JSONResponse(answer.model_dump(exclude_none=True))


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
    """The web page."""
    return FileResponse(PAGE, media_type="text/html")


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The served names, each with what the image model offers."""
    served = request.app.state.openai_serving_models
    models = (await served.show_available_models()).model_dump()
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


async def _body(request: Request, limit: int) -> ImageGenerationRequest:
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
    return parse_request(data)


async def _streamed(
    service: ImageService, job: ImageJob, partial_images: int, request: Request
) -> AsyncGenerator[str, None]:
    start = time.monotonic()
    try:
        async for event in stream_events(service, job, partial_images):
            yield event
    finally:
        service.release(job)
        _log(request, job, 200, start)


def _log(
    request: Request, job: ImageJob, status: int, start: float, steps: int | None = None
) -> None:
    request_id = request.headers.get("x-request-id", "-")[:64]
    printable = "".join(c if c.isprintable() and c != " " else "?" for c in request_id)
    access_log.write(printable, job, status, time.monotonic() - start, steps)
