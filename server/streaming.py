"""Server-sent events: partial pictures while rows finish, then the whole one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

from . import metrics
from .errors import APIError
from .jobs import ImageJob
from .service import ImageService, Picture, to_base64

T = TypeVar("T")

KEEP_ALIVE_SECONDS = 10.0
KEEP_ALIVE = ": keep-alive\n\n"


class PartialSchedule:
    """Spreads ``count`` partial pictures evenly over ``rows``.

    Called with the number of complete rows; says whether a partial is due, at most once each.
    """

    def __init__(self, count: int, rows: int) -> None:
        self._due = [rows * (k + 1) // (count + 1) for k in range(count)]

    def __call__(self, rows: int) -> bool:
        reached = [due for due in self._due if due <= rows]
        self._due = self._due[len(reached) :]
        return bool(reached)


async def stream_events(
    service: ImageService, job: ImageJob, partial_images: int
) -> AsyncGenerator[str, None]:
    """The events of one image, as text; a failure after the first byte becomes an event."""
    schedule = PartialSchedule(partial_images, job.grid.rows)
    index = 0
    try:
        async with aclosing(service.pictures(job, wants_partial=schedule)) as pictures:
            async for picture in with_keep_alive(pictures):
                if picture is None:
                    yield KEEP_ALIVE
                elif picture.rows < job.grid.rows:
                    metrics.partial_images.inc()
                    yield _event("image_generation.partial_image", picture, job, index)
                    index += 1
                else:
                    yield _event("image_generation.completed", picture, job)
    except APIError as error:
        yield f"event: error\ndata: {json.dumps({'type': 'error', **error.body()})}\n\n"


async def with_keep_alive(
    items: AsyncIterator[T], seconds: float = KEEP_ALIVE_SECONDS
) -> AsyncGenerator[T | None, None]:
    """Pass items on; None whenever ``seconds`` went by without one."""
    pending: asyncio.Future[T] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(items))
            done, _ = await asyncio.wait([pending], timeout=seconds)
            if not done:
                yield None
                continue
            try:
                item = pending.result()
            except StopAsyncIteration:
                return
            finally:
                pending = None
            yield item
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


def _event(kind: str, picture: Picture, job: ImageJob, index: int | None = None) -> str:
    data: dict[str, Any] = {
        "type": kind,
        "b64_json": to_base64(picture.file),
        "background": "opaque",
        "created_at": int(time.time()),
        "output_format": job.encoding.format,
        "quality": job.quality,
        "size": job.size,
        "seed": picture.params.seed,
    }
    if index is None:
        data["usage"] = job.usage.model_dump()
        data["zipar"] = {
            "steps": picture.steps,
            "window": picture.params.window,
            "seconds": picture.seconds.model_dump(),
        }
    else:
        data["partial_image_index"] = index
        data["zipar"] = {"rows": picture.rows}
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
