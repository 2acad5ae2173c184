"""From image tokens to files, in a thread of its own: the event loop never waits for it.

Pictures that are ready at the same time are drawn in one batch.
"""

from __future__ import annotations

import asyncio
import io
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from zipar_vllm.core.grid import Grid

Pixels = NDArray[np.uint8]
DrawFunction = Callable[[torch.Tensor], torch.Tensor]

MAX_BATCH = 16
DEFAULT_COMPRESSION = 90
NEUTRAL = 128
"""Grey level of the part of a partial image that is not decoded yet."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """File format of an answer: ``png``, ``webp`` or ``jpeg``, and its quality, 0 to 100."""

    format: str = "png"
    quality: int = DEFAULT_COMPRESSION


@dataclass(slots=True)
class _Job:
    codes: Sequence[int]
    grid: Grid
    encoding: Encoding
    future: asyncio.Future[bytes]
    loop: asyncio.AbstractEventLoop


class PixelDecoder:
    """Draws pictures and encodes them.

    Args:
        draw: int64 ``[B, rows, columns]`` to uint8 ``[B, H, W, 3]``.
        observe: Called with the seconds each batch took, from the thread.
    """

    def __init__(
        self, draw: DrawFunction, observe: Callable[[float], None] = lambda seconds: None
    ) -> None:
        self._draw = draw
        self._observe = observe
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pixels", daemon=True)
        self._thread.start()

    async def encode(self, codes: Sequence[int], grid: Grid, encoding: Encoding) -> bytes:
        """Draw a picture, whole or its first rows (the rest stays neutral), and encode it.

        Args:
            codes: Image codes of whole rows in raster order, terminators left out.
            grid: The picture's grid.
            encoding: File format.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        self._jobs.put(_Job(codes, grid, encoding, future, loop))
        return await future

    def close(self) -> None:
        """Stop the thread after what it has begun."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            while len(batch) < MAX_BATCH and not self._jobs.empty():
                other = self._jobs.get()
                if other is None:
                    self._jobs.put(None)
                    break
                batch.append(other)
            # What nobody waits for any more is not drawn.
            for same in _by_grid([job for job in batch if not job.future.cancelled()]):
                self._serve(same)

    def _serve(self, batch: list[_Job]) -> None:
        start = time.perf_counter()
        try:
            files = self._files(batch)
        except Exception as error:
            for job in batch:
                _resolve(job, error)
            return
        self._observe(time.perf_counter() - start)
        for job, file in zip(batch, files, strict=True):
            _resolve(job, file)

    def _files(self, batch: list[_Job]) -> list[bytes]:
        grid = batch[0].grid
        codes = torch.zeros(len(batch), grid.num_sampled, dtype=torch.int64)
        for row, job in zip(codes, batch, strict=True):
            row[: len(job.codes)] = torch.tensor(job.codes)
            # What comes below shows at the lower edge of what is there, so let it be the like.
            rest = row[len(job.codes) :].view(-1, grid.columns)
            rest[:] = row[: len(job.codes)].view(-1, grid.columns)[-1]
        drawn = self._draw(codes.view(-1, grid.rows, grid.columns)).cpu().numpy()
        return [
            encode_image(_neutral_below(pixels, len(job.codes) // grid.columns, grid), job.encoding)
            for pixels, job in zip(drawn, batch, strict=True)
        ]


def encode_image(pixels: Pixels, encoding: Encoding) -> bytes:
    """Encode uint8 ``[H, W, 3]``."""
    buffer = io.BytesIO()
    options = {} if encoding.format == "png" else {"quality": encoding.quality}
    Image.fromarray(pixels).save(buffer, format=encoding.format, **options)
    return buffer.getvalue()


def _neutral_below(pixels: Pixels, rows: int, grid: Grid) -> Pixels:
    """Grey out what is not decoded yet."""
    if rows == grid.rows:
        return pixels
    shown = pixels.copy()
    shown[pixels.shape[0] * rows // grid.rows :] = NEUTRAL
    return shown


def _by_grid(batch: list[_Job]) -> list[list[_Job]]:
    groups: dict[Grid, list[_Job]] = {}
    for job in batch:
        groups.setdefault(job.grid, []).append(job)
    return list(groups.values())


def _resolve(job: _Job, result: bytes | Exception) -> None:
    def finish() -> None:
        if job.future.done():  # nobody waits any more
            return
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)

    job.loop.call_soon_threadsafe(finish)
