"""Server-sent events: partial images while rows finish, then the whole one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from . import metrics
from .access_log import AccessRecord
from .errors import as_api_error
from .prepare import PreparedRequest
from .service import ImageService, RenderedImage, report, to_base64

T = TypeVar("T")

FIRST_KEEP_ALIVE_SECONDS = 0.5
"""Errors within this time are sent as an HTTP status, later ones as an SSE ``error`` event."""
KEEP_ALIVE_SECONDS = 2.0

_END = object()


def rows_of_partials(count: int, rows: int) -> list[int]:
    """How many rows each of ``count`` partial images shows, spread evenly over ``rows``.

    A grid of few rows has fewer partial images.
    """
    shown = {rows * (k + 1) // (count + 1) for k in range(count)}
    return sorted(shown - {0, rows})


class EventStream(StreamingResponse):
    """Events as an HTTP response, whose end is noticed however it comes.

    Args:
        first: An event that has come already.
        events: The others; closed when the client leaves, even before it read the first.
        finish: Called once, at the end.
    """

    def __init__(
        self, first: str, events: AsyncGenerator[str, None], finish: Callable[[], None]
    ) -> None:
        self._events = events
        self._finish = finish
        # Proxies are asked not to hold events back.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_chain(first, events), headers=headers, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            try:
                await self._events.aclose()
            finally:
                self._finish()


async def _chain(first: str, events: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    yield first
    async for event in events:
        yield event


async def stream_events(
    service: ImageService, request: PreparedRequest, partial_images: int, record: AccessRecord
) -> AsyncGenerator[str, None]:
    """The events of a request's one image, as text.

    A failure behind the first event becomes an event too; one before it is raised.

    Args:
        service: Decodes it.
        request: The request.
        partial_images: How many partial images to send.
        record: Told how the stream ended.
    """
    image = request.images[0]
    partial_rows = rows_of_partials(partial_images, image.grid.rows)
    standing = service.standing(image)
    index, began = 0, False
    try:
        async with (
            aclosing(service.stream(image, request, standing, partial_rows)) as stream,
            aclosing(with_keep_alive(stream)) as items,
        ):
            async for rendered in items:
                began = True
                if rendered is None:
                    # A comment, which clients of server-sent events leave out.
                    yield f": {json.dumps(standing.report())}\n\n"
                elif rendered.complete_rows < image.grid.rows:
                    metrics.partial_images.inc()
                    yield _event("image_generation.partial_image", rendered, request, index)
                    index += 1
                else:
                    record.status, record.steps = 200, rendered.steps
                    yield _event("image_generation.completed", rendered, request)
    except Exception as error:
        if not began:
            raise
        failure = as_api_error(error)
        record.status = failure.status
        yield f"event: error\ndata: {json.dumps({'type': 'error', **failure.body()})}\n\n"


async def with_keep_alive(
    items: AsyncIterator[T],
    seconds: float = KEEP_ALIVE_SECONDS,
    first_seconds: float = FIRST_KEEP_ALIVE_SECONDS,
) -> AsyncGenerator[T | None, None]:
    """Pass items on; None whenever ``seconds`` went by without one, at first ``first_seconds``.

    One task draws all items, because what draws them may hold a deadline, which is a task's.
    It does not wait for slow readers: an image has no more than a few items.
    """
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    async def draw() -> None:
        try:
            async for item in items:
                arrived.put_nowait(item)
            arrived.put_nowait(_END)
        except Exception as error:
            arrived.put_nowait(error)

    task = asyncio.create_task(draw())
    try:
        wait = first_seconds
        while (item := await _next(arrived, wait)) is not _END:
            if isinstance(item, Exception):
                raise item
            wait = seconds
            yield item
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _next(arrived: asyncio.Queue[Any], seconds: float) -> Any:
    try:
        async with asyncio.timeout(seconds):
            return await arrived.get()
    except TimeoutError:
        return None


def _event(
    kind: str, image: RenderedImage, request: PreparedRequest, index: int | None = None
) -> str:
    data: dict[str, Any] = {
        "type": kind,
        "b64_json": to_base64(image.file),
        "background": "opaque",
        "created_at": int(time.time()),
        "output_format": request.encoding.format,
        "quality": request.quality,
        "size": request.size,
        "seed": image.params.seed,
    }
    if index is None:
        data["usage"] = request.usage.model_dump()
        data["zipar"] = report([image]).model_dump()
    else:
        data["partial_image_index"] = index
        data["zipar"] = {"rows": image.complete_rows, "of": request.images[0].grid.rows}
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
