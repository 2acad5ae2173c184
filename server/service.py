"""From a request to its answer: decode, render, report."""

from __future__ import annotations

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from zipar_vllm.models.base import ImageModel
from zipar_vllm.params import ImageParams
from zipar_vllm.prepare import ADAPTIVE, PreparedImage
from zipar_vllm.progress import ImageProgress

from . import metrics
from .admission import Admission
from .engine import ImageEngine
from .errors import DeadlineError
from .options import ServerOptions
from .pixels import PixelWorker
from .prepare import PreparedRequest, prepare_request
from .schemas import ImageData, ImageGenerationRequest, ImagesResponse, Seconds, ZiparReport
from .standing import Standing
from .storage import ImageStore


@dataclass(frozen=True, slots=True)
class RenderedImage:
    """An image, whole or its first rows, as a file."""

    file: bytes
    params: ImageParams
    complete_rows: int
    steps: int
    accepted_drafts: float | None
    seconds: Seconds


class ImageService:
    """Answers image requests with an engine, a model's text and pixel side, and limits.

    Args:
        engine: Decodes tokens.
        model: Reads prompts and renders pixels.
        options: Limits.
    """

    def __init__(self, engine: ImageEngine, model: ImageModel, options: ServerOptions) -> None:
        self.model = model
        self.options = options
        self.admission = Admission(options.max_active_images)
        self.store = ImageStore.from_options(options)
        self._engine = engine
        self._waiting: dict[Standing, None] = {}
        self._pixels = PixelWorker(model.decode, metrics.pixel_seconds.observe)

    def close(self) -> None:
        """Stop the pixel thread."""
        self._pixels.close()

    def prepare(self, request: ImageGenerationRequest) -> PreparedRequest:
        """Fill in a request's defaults; see :func:`prepare_request`."""
        return prepare_request(
            request,
            self.model,
            has_storage=self.store is not None,
            nearest_size=self.options.nearest_size,
        )

    def standing(self, image: PreparedImage) -> Standing:
        """Where an image stands once it is streamed; for :meth:`stream`."""
        return Standing(image.grid.rows, self._waiting)

    async def generate(self, request: PreparedRequest, base_url: str) -> ImagesResponse:
        """Decode and render all images of a request; if one fails, the others are given up.

        Raises:
            DeadlineError: an image took longer than it may.
            EngineUnavailableError: the engine is draining, or died.
            ImageTooLargeError: the engine can never hold an image.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._whole(image, request)) for image in request.images]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        rendered = [task.result() for task in tasks]
        return ImagesResponse(
            created=int(time.time()),
            data=[await self._data(image, request, base_url) for image in rendered],
            output_format=request.encoding.format,
            quality=request.quality,
            size=request.size,
            usage=request.usage,
            zipar=report(rendered),
        )

    async def _whole(self, image: PreparedImage, request: PreparedRequest) -> RenderedImage:
        async with aclosing(self.stream(image, request, self.standing(image))) as stream:
            async for rendered in stream:
                last = rendered
        return last

    async def stream(
        self,
        image: PreparedImage,
        request: PreparedRequest,
        standing: Standing,
        partial_rows: Sequence[int] = (),
    ) -> AsyncGenerator[RenderedImage, None]:
        """Decode one image; yields its first rows where wanted, then the whole one.

        One task has to draw all of them, because the deadline is that task's.

        Args:
            image: One of the request's images.
            request: The request.
            standing: The image's; kept up to date.
            partial_rows: After which rows to show what there is, ascending. An engine that is
                ahead of the pixels changes nothing about what is shown.

        Raises:
            DeadlineError, EngineUnavailableError, ImageTooLargeError: as :meth:`generate`.
        """
        start = time.monotonic()
        limits = [limit for limit in (self.options.image_timeout, request.timeout) if limit]
        limit = min(limits, default=None)
        name = f"image-{uuid.uuid4().hex}"
        try:
            with standing.queued():
                async with (
                    asyncio.timeout(limit) as deadline,
                    aclosing(self._engine.generate(name, image)) as progress,
                ):
                    due = list(partial_rows)
                    async for now in progress:
                        standing.update(now)
                        while due and due[0] <= now.complete_rows:
                            yield await self._render(now, due.pop(0), image, request, start)
                        if now.finished:
                            yield await self._render(now, image.grid.rows, image, request, start)
        except (asyncio.CancelledError, GeneratorExit):
            metrics.images_failed.labels("abandoned").inc()
            raise
        except Exception as error:
            metrics.images_failed.labels(type(error).__name__).inc()
            if limit and deadline.expired():
                raise DeadlineError(limit) from error
            raise
        metrics.images_finished.labels(image.size).inc()
        metrics.image_seconds.labels(image.size).observe(time.monotonic() - start)
        metrics.image_steps.observe(now.steps or 0)
        metrics.queue_seconds.observe(now.queue_seconds or 0.0)

    async def _render(
        self,
        now: ImageProgress,
        rows: int,
        image: PreparedImage,
        request: PreparedRequest,
        start: float,
    ) -> RenderedImage:
        decoded = time.monotonic()
        codes = now.codes[: rows * image.grid.columns]
        file = await self._pixels.render(codes, image.grid, request.encoding)
        queued = now.queue_seconds or 0.0
        seconds = Seconds(
            queue=queued, decode=decoded - start - queued, pixels=time.monotonic() - decoded
        )
        return RenderedImage(file, image.params, rows, now.steps or 0, now.accepted_drafts, seconds)

    async def _data(
        self, image: RenderedImage, request: PreparedRequest, base_url: str
    ) -> ImageData:
        if request.as_url and self.store is not None:
            save = self.store.save
            name = await asyncio.to_thread(save, image.file, request.encoding.format)
            return ImageData(url=f"{base_url.rstrip('/')}/images/{name}", seed=image.params.seed)
        return ImageData(b64_json=to_base64(image.file), seed=image.params.seed)


def to_base64(file: bytes) -> str:
    """A file as a JSON string holds it."""
    return base64.b64encode(file).decode("ascii")


def report(images: list[RenderedImage]) -> ZiparReport:
    """Report of a request; with several images, of the slowest."""
    slowest = max(images, key=lambda i: i.seconds.queue + i.seconds.decode + i.seconds.pixels)
    return ZiparReport(
        steps=slowest.steps,
        window=slowest.params.window,
        adaptive=slowest.params.policy == ADAPTIVE,
        policy=slowest.params.policy,
        drafts=slowest.params.drafts,
        accepted_drafts=slowest.accepted_drafts,
        seconds=slowest.seconds,
    )
