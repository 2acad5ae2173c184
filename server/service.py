"""From a request to its answer: check, decode, draw."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

from zipar_vllm.config import ImageParams
from zipar_vllm.errors import EngineUnavailableError, ImageTooLargeError
from zipar_vllm.models.base import ImageModel

from . import lifecycle, metrics
from .engine import ImageEngine
from .errors import APIError, as_api_error
from .jobs import ImageJob, prepare_job
from .options import ServerOptions
from .pixels import PixelDecoder
from .schemas import (
    ImageData,
    ImageGenerationRequest,
    ImagesResponse,
    Seconds,
    ZiparReport,
    request_schema,
)
from .storage import ImageStore

RETRY_SECONDS = 1
"""What overloaded clients are asked to wait: about the time an image takes."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, whole or its first rows, as a file."""

    file: bytes
    params: ImageParams
    rows: int
    steps: int
    seconds: Seconds


class ImageService:
    """Answers image requests with an engine, a model's text and pixel side, and limits.

    Args:
        engine: Decodes tokens.
        model: Reads prompts and draws pixels.
        options: Limits.
    """

    def __init__(self, engine: ImageEngine, model: ImageModel, options: ServerOptions) -> None:
        self.model = model
        self.options = options
        self.store = ImageStore.from_options(options)
        self.schema = request_schema(model.spec)
        self._engine = engine
        self._pixels = PixelDecoder(model.decode, metrics.pixel_seconds.observe)
        self._active = 0

    def close(self) -> None:
        """Stop the pixel thread."""
        self._pixels.close()

    def prepare(self, request: ImageGenerationRequest) -> ImageJob:
        """Fill in a request's defaults; see :func:`prepare_job`."""
        return prepare_job(request, self.model, has_storage=self.store is not None)

    def admit(self, job: ImageJob) -> None:
        """Take a request in, or refuse it at once; :meth:`release` must follow.

        Raises:
            APIError: 503 with Retry-After, while the server is full or stops.
        """
        if lifecycle.told_to_stop():
            raise _stopping()
        limit = self.options.max_active_images
        if self._active + job.count > limit:
            metrics.requests_rejected.inc()
            raise APIError(
                503,
                f"the server has {self._active} images in hand, its limit is {limit}",
                code="overloaded",
                retry_after=RETRY_SECONDS,
            )
        self._active += job.count
        metrics.images_active.set(self._active)
        adaptive = str(job.params.adaptive).lower()
        metrics.windows.labels(job.params.window, adaptive).inc(job.count)

    def release(self, job: ImageJob) -> None:
        """Give up the places :meth:`admit` took."""
        self._active -= job.count
        metrics.images_active.set(self._active)

    async def generate(self, job: ImageJob, base_url: str) -> ImagesResponse:
        """Decode and draw all images of a request; if one fails, the others are given up.

        Raises:
            APIError: 503 if the engine is draining, 500 if it died, 504 past the deadline.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._image(job, k)) for k in range(job.count)]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        pictures = [task.result() for task in tasks]
        return ImagesResponse(
            created=int(time.time()),
            data=[await self._data(picture, job, base_url) for picture in pictures],
            output_format=job.encoding.format,
            quality=job.quality,
            size=job.size,
            usage=job.usage,
            zipar=report(pictures),
        )

    async def _image(self, job: ImageJob, index: int) -> Picture:
        async with aclosing(self.pictures(job, index)) as pictures:
            async for picture in pictures:
                last = picture
        return last

    async def pictures(
        self,
        job: ImageJob,
        index: int = 0,
        wants_partial: Callable[[int], bool] = lambda rows: False,
    ) -> AsyncGenerator[Picture, None]:
        """Decode one image; yields partial pictures where wanted, then the whole one.

        One task has to draw them all, because the deadline is that task's.

        Args:
            job: The request.
            index: Which of its images.
            wants_partial: Asked with the number of complete rows each time it grows.

        Raises:
            APIError: as :meth:`generate`.
        """
        params = replace(job.params, seed=job.params.seed + index)
        start = time.monotonic()
        limit = min(filter(None, (self.options.image_timeout, job.timeout)), default=None)
        try:
            async with asyncio.timeout(limit):
                async with aclosing(
                    self._engine.generate(
                        f"image-{uuid.uuid4().hex}", job.prompt_ids, job.unconditional_ids, params
                    )
                ) as progress:
                    async for now in progress:
                        partial = now.rows < job.grid.rows and wants_partial(now.rows)
                        if not now.finished and not partial:
                            continue
                        decoded = time.monotonic()
                        file = await self._pixels.encode(now.codes, job.grid, job.encoding)
                        queued = now.queue_seconds or 0.0
                        seconds = Seconds(
                            queue=queued,
                            decode=decoded - start - queued,
                            pixels=time.monotonic() - decoded,
                        )
                        yield Picture(file, params, now.rows, now.steps or 0, seconds)
        except (asyncio.CancelledError, GeneratorExit):
            metrics.images_failed.labels("abandoned").inc()
            raise
        except Exception as error:
            metrics.images_failed.labels(type(error).__name__).inc()
            raise _api_error(error, limit) from error
        metrics.images_finished.labels(job.size).inc()
        metrics.image_seconds.labels(job.size).observe(time.monotonic() - start)
        metrics.image_steps.observe(now.steps or 0)
        metrics.queue_seconds.observe(now.queue_seconds or 0.0)

    async def _data(self, picture: Picture, job: ImageJob, base_url: str) -> ImageData:
        if job.as_url and self.store is not None:
            save = self.store.save
            name = await asyncio.to_thread(save, picture.file, job.encoding.format)
            return ImageData(url=f"{base_url.rstrip('/')}/images/{name}", seed=picture.params.seed)
        return ImageData(b64_json=to_base64(picture.file), seed=picture.params.seed)


def to_base64(file: bytes) -> str:
    """A file as a JSON string holds it."""
    return base64.b64encode(file).decode("ascii")


def report(pictures: list[Picture]) -> ZiparReport:
    """How they were decoded: the slowest of them speaks for all."""
    slowest = max(pictures, key=lambda p: p.seconds.queue + p.seconds.decode + p.seconds.pixels)
    return ZiparReport(
        steps=slowest.steps,
        window=slowest.params.window,
        adaptive=slowest.params.adaptive,
        seconds=slowest.seconds,
    )


def _api_error(error: Exception, limit: float | None) -> APIError:
    """What the client is told of a failure; the details are for the log."""
    match error:
        case APIError():
            return error
        case ImageTooLargeError():
            return APIError(400, str(error), param="size", code="image_too_large")
        case TimeoutError() if limit:
            return APIError(504, f"the image took more than {limit:g} s", code="deadline_exceeded")
        case EngineUnavailableError(dead=False):
            return _stopping()
    return as_api_error(error)


def _stopping() -> APIError:
    message = "the server is shutting down"
    return APIError(503, message, code="unavailable", retry_after=RETRY_SECONDS)
