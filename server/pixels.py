"""From image tokens to files, in a thread of its own: the event loop never waits for it.

Pictures that are ready at the same time are rendered in one batch.
"""

from __future__ import annotations

import asyncio
import io
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from zipar_vllm.core.grid import Grid
from zipar_vllm.models.tiles import MAX_BATCH

Pixels = NDArray[np.uint8]
RenderFunction = Callable[[torch.Tensor], torch.Tensor]

Format = Literal["png", "webp", "jpeg"]
LOSSY_FORMATS = ("webp", "jpeg")

DEFAULT_COMPRESSION = 90
NEUTRAL = 128
"""Grey level of the part of a partial image that is not decoded yet."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """File format of an answer, and its quality where it is lossy, 0 to 100."""

    format: Format = "png"
    quality: int = DEFAULT_COMPRESSION


@dataclass(slots=True)
class _Task:
    codes: Sequence[int]
    grid: Grid
    encoding: Encoding
    future: asyncio.Future[bytes]
    loop: asyncio.AbstractEventLoop


class PixelWorker:
    """Renders pictures and encodes them.

    Args:
        render: int64 ``[B, rows, columns]`` to uint8 ``[B, H, W, 3]``.
        observe: Called with the seconds each batch took, from the thread.
    """

    def __init__(
        self, render: RenderFunction, observe: Callable[[float], None] = lambda seconds: None
    ) -> None:
        self._render = render
        self._observe = observe
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pixels", daemon=True)
        self._thread.start()

    async def render(self, codes: Sequence[int], grid: Grid, encoding: Encoding) -> bytes:
        """Render a picture, whole or its first rows (the rest stays neutral), and encode it.

        Args:
            codes: Image codes of whole rows in raster order, terminators left out.
            grid: The picture's grid.
            encoding: File format.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        self._tasks.put(_Task(codes, grid, encoding, future, loop))
        return await future

    def close(self) -> None:
        """Stop the thread after what it has begun."""
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            batch = [task]
            while len(batch) < MAX_BATCH and not self._tasks.empty():
                other = self._tasks.get()
                if other is None:
                    self._tasks.put(None)
                    break
                batch.append(other)
            # What nobody waits for any more is not rendered.
            for same in _by_grid([task for task in batch if not task.future.cancelled()]):
                self._serve(same)

    def _serve(self, batch: list[_Task]) -> None:
        start = time.perf_counter()
        try:
            files = self._files(batch)
        except Exception as error:
            for task in batch:
                _resolve(task, error)
            return
        self._observe(time.perf_counter() - start)
        for task, file in zip(batch, files, strict=True):
            _resolve(task, file)

    def _files(self, batch: list[_Task]) -> list[bytes]:
        grid = batch[0].grid
        codes = torch.zeros(len(batch), grid.num_sampled, dtype=torch.int64)
        for row, task in zip(codes, batch, strict=True):
            count = len(task.codes)
            row[:count] = torch.tensor(task.codes)
            # The decoder sees one row further down: repeat the last one, so that the edge does not
            # change when the next is decoded.
            row[count:].view(-1, grid.columns)[:] = row[:count].view(-1, grid.columns)[-1]
        pixels = self._render(codes.view(-1, grid.rows, grid.columns)).cpu().numpy()
        return [
            encode_image(_neutral_below(one, len(task.codes) // grid.columns, grid), task.encoding)
            for one, task in zip(pixels, batch, strict=True)
        ]


def encode_image(pixels: Pixels, encoding: Encoding) -> bytes:
    """Encode uint8 ``[H, W, 3]``."""
    buffer = io.BytesIO()
    options = {"quality": encoding.quality} if encoding.format in LOSSY_FORMATS else {}
    Image.fromarray(pixels).save(buffer, format=encoding.format, **options)
    return buffer.getvalue()


def _neutral_below(pixels: Pixels, rows: int, grid: Grid) -> Pixels:
    """Grey out what is not decoded yet."""
    if rows == grid.rows:
        return pixels
    shown = pixels.copy()
    shown[pixels.shape[0] * rows // grid.rows :] = NEUTRAL
    return shown


def _by_grid(batch: list[_Task]) -> list[list[_Task]]:
    groups: dict[Grid, list[_Task]] = {}
    for task in batch:
        groups.setdefault(task.grid, []).append(task)
    return list(groups.values())


def _resolve(task: _Task, result: bytes | Exception) -> None:
    def finish() -> None:
        if task.future.done():  # nobody waits any more
            return
        if isinstance(result, Exception):
            task.future.set_exception(result)
        else:
            task.future.set_result(result)

    task.loop.call_soon_threadsafe(finish)
