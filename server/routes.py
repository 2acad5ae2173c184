"""The routes: parse, hand over, answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from contextlib import ExitStack
from typing import Any, TypeVar, cast

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from zipar_vllm.errors import shorten
from zipar_vllm.models.base import ImageModelSpec
from zipar_vllm.prepare import MAX_DRAWN_SEED, policy_names

from . import vllm_server
from .access_log import ABANDONED, access_record
from .errors import APIError, as_api_error, invalid
from .middleware import request_id_of
from .prepare import parse_request
from .schemas import (
    MAX_IMAGES,
    MAX_PARTIAL_IMAGES,
    MAX_PROMPT_CHARACTERS,
    ErrorEnvelope,
    ImageGenerationRequest,
    ImagesResponse,
    option_ranges,
    request_schema,
)
from .service import ImageService
from .streaming import EventStream, stream_events

T = TypeVar("T")

router = APIRouter()


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
    """Generate images of a prompt."""
    service = service_of(request)
    # Holds the log's line and the request's places until the answer is out, or the stream ended.
    with ExitStack() as held:
        record = held.enter_context(access_record(request_id_of(request)))
        try:
            body = await _read_body(request, service.options.max_body_bytes)
            _check_model(request, body.model)
            record.request = prepared = await asyncio.to_thread(service.prepare, body)
            held.enter_context(service.admission.admit(prepared))
            if not body.stream:
                work = service.generate(prepared, str(request.base_url))
                answer = await unless_disconnected(request, work)
                if answer is None:
                    return Response(status_code=ABANDONED)  # nobody reads it
                record.status, record.steps = 200, answer.zipar.steps
                return JSONResponse(answer.model_dump(exclude_none=True))
            events = stream_events(service, prepared, body.partial_images or 0, record)
            first = await unless_disconnected(request, anext(events))
            if first is None:
                await events.aclose()
                return Response(status_code=ABANDONED)
            return EventStream(first, events, finish=held.pop_all().close)
        except Exception as error:
            failure = as_api_error(error)
            record.status = failure.status
            return failure.response()


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


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The served names, each with what the image model offers."""
    models = await vllm_server.list_models(request.app.state)
    service = service_of(request)
    for model in models["data"]:
        model["zipar"] = describe(service.model.spec, service.options.max_active_images)
        model.pop("root", None)  # a path on the server
    return JSONResponse(models)


def describe(spec: ImageModelSpec, max_active_images: int) -> dict[str, Any]:
    """List what a client may ask of a model, and of this server."""
    return {
        "family": spec.family,
        "limits": {
            "n": MAX_IMAGES,
            "partial_images": MAX_PARTIAL_IMAGES,
            "prompt_characters": MAX_PROMPT_CHARACTERS,
            "prompt_tokens": spec.max_prompt_tokens,
            "active_images": max_active_images,
            "drawn_seed": MAX_DRAWN_SEED,
        },
        "options": option_ranges(),
        "policies": policy_names(),
        "sizes": list(spec.grids),
        "size": spec.sizes.allowed,
        "windows": {s: {"min": 1, "max": grid.columns} for s, grid in spec.grids.items()},
        "defaults": spec.defaults.model_dump(exclude_none=True),
        **spec.details,
    }


def service_of(request: Request) -> ImageService:
    """The service the plugin put into the application's state."""
    return cast(ImageService, request.app.state.zipar_images)


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T | None:
    """Await some work, but give it up when the client goes away; None then.

    vLLM's own ``with_cancellation`` does not wait for what it cancels, and cannot stand behind
    code that has read the body.
    """
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


async def _read_body(request: Request, limit: int) -> ImageGenerationRequest:
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


def _check_model(request: Request, name: str | None) -> None:
    served = vllm_server.served_names(request.app.state)
    if name and name not in served:
        message = f"model: got {shorten(name)}, served is {' or '.join(served)}"
        raise APIError(404, message, param="model", code="model_not_found")
