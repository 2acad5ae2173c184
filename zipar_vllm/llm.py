"""The front door for Python: prompts in, pictures out, without a server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from .core.grid import Grid
from .cpu import num_cores
from .engine.arguments import ONE_PROCESS, engine_arguments
from .engine.capacity import check_capacity
from .engine.client import read_progress
from .engine.pixel_memory import tell_pixel_device
from .engine.request import make_job, make_request
from .engine.vllm_api import LLM, RequestOutput
from .errors import EngineUnavailableError
from .models import DEMO_PATH
from .models.registry import default_device, load_image_model
from .models.tiles import MAX_BATCH
from .params import ImageOptions, ImageParams, parse
from .prepare import PreparedImage, make_seeds, prepare_images
from .progress import ImageProgress

DEMO_KV_CACHE_BYTES = 256 << 20
"""KV cache of the embedded model where nothing else is asked for: some 70 guided images."""


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """A picture, and how it came about.

    Attributes:
        prompt: What was asked for.
        image: The picture, RGB.
        tokens: Token ids in raster order, row terminators included.
        params: How it was decoded; its ``seed`` gives the same picture again.
        steps: Forward passes, as the engine counted them.
        accepted_drafts: Share of its drafts that were accepted; None if it made none.
        seconds: From being handed to the engine to the last token; pixels come on top.
        logprobs: float32 ``[rows, columns]``, log-probability of each token after guidance, before
            temperature and cuts; None if not asked for.
    """

    prompt: str
    image: Image.Image
    tokens: list[int]
    params: ImageParams
    steps: int
    accepted_drafts: float | None
    seconds: float
    logprobs: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A picture's tokens, before they are rendered.

    Attributes:
        tokens: Token ids in raster order, row terminators included.
        codes: Image codes in raster order.
        steps: Forward passes, as the engine counted them.
        accepted_drafts: Share of its drafts that were accepted; None if it made none.
        seconds: From being handed to the engine to the last token.
        logprobs: float32 ``[rows, columns]``; None if not asked for.
    """

    tokens: list[int]
    codes: list[int]
    steps: int
    accepted_drafts: float | None
    seconds: float
    logprobs: NDArray[np.float32] | None


class ImageLLM:
    """An image model in this process, as :class:`vllm.LLM` is a language model.

        with ImageLLM() as llm:
            for result in llm.generate(["red apple", "pizza"], window=4, seed=7):
                result.image.save(f"{result.prompt}.png")

    The engine starts when the block is entered, or with the first pictures.

    Args:
        model: Folder or hub id of an image model; None is the embedded one.
        pixel_device: Device, or its name, that renders pixels; None is the GPU if there is one.
        **engine_args: Further arguments of :class:`vllm.LLM`, such as ``dtype``,
            ``max_num_seqs`` or ``tensor_parallel_size``.

    Raises:
        UnusableModelError: it is no image model of a known family, or not complete.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        pixel_device: Any = None,
        **engine_args: Any,
    ) -> None:
        path = DEMO_PATH if model is None else model
        device = pixel_device or default_device()
        self.model = load_image_model(path, engine_args.get("revision"), device)
        if model is None:
            engine_args = {"kv_cache_memory_bytes": DEMO_KV_CACHE_BYTES} | engine_args
        told = tell_pixel_device(engine_args.get("additional_config"), str(device))
        self._arguments = engine_arguments(path, **engine_args | {"additional_config": told})
        self._llm: Any = None

    def __enter__(self) -> ImageLLM:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def llm(self) -> LLM:
        """vLLM's own object; starts the engine if it does not run."""
        self.start()
        return self._llm

    def start(self) -> None:
        """Start the engine; nothing if it runs."""
        if self._llm is None:
            in_process = self._arguments.get("distributed_executor_backend") == ONE_PROCESS
            with _starting(in_process):
                self._llm = LLM(**self._arguments)

    def close(self) -> None:
        """End the engine; it would start again with the next pictures."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def prepare(
        self,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int] | None = None,
        **options: Any,
    ) -> list[PreparedImage]:
        """Check and complete what :meth:`generate` is given, without the engine.

        Raises:
            InvalidOptionError: names the option, what came and what is allowed.
        """
        seeds = make_seeds(seed, len(prompts))
        wishes = parse(ImageOptions, options)
        return [
            prepare_images(self.model, prompt, wishes, [own])[0]
            for prompt, own in zip(prompts, seeds, strict=True)
        ]

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        seed: int | Sequence[int] | None = None,
        logprobs: bool = False,
        progress: bool = True,
        **options: Any,
    ) -> list[GeneratedImage]:
        """Generate a picture of each prompt, all of them in one batch as far as memory allows.

        Args:
            prompts: One prompt, or several.
            seed: Of the first picture, the next one has one more; or a seed for each; drawn and
                told in the results if None.
            logprobs: Whether to return the log-probabilities of the drawn tokens.
            progress: Whether to show a bar of the rows that are complete.
            **options: Fields of :class:`~zipar_vllm.params.ImageOptions`: ``size``, ``window``,
                ``drafts``, ``adaptive``, ``guidance_scale``, ``temperature``, ... The model's
                defaults apply to the others.

        Returns:
            The results, in the order of the prompts.

        Raises:
            InvalidOptionError: names the option, what came and what is allowed.
            ImageTooLargeError: the engine's memory can never hold an image.
            EngineUnavailableError: the engine gave an image up.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        images = self.prepare(prompts, seed=seed, **options)
        decoded = self.decode(images, logprobs=logprobs, progress=progress)
        pictures = self._render(images, decoded)
        return [
            GeneratedImage(
                prompt=prompt,
                image=picture,
                tokens=done.tokens,
                params=image.params,
                steps=done.steps,
                accepted_drafts=done.accepted_drafts,
                seconds=done.seconds,
                logprobs=done.logprobs,
            )
            for prompt, picture, image, done in zip(prompts, pictures, images, decoded, strict=True)
        ]

    def decode(
        self, images: Sequence[PreparedImage], *, logprobs: bool = False, progress: bool = False
    ) -> list[DecodedImage]:
        """Decode prepared images to tokens, without rendering them.

        Raises:
            ImageTooLargeError, EngineUnavailableError: as :meth:`generate`.
        """
        engine = self.llm.llm_engine
        for image in images:
            check_capacity(make_job(image), engine.vllm_config)
        names = [str(index) for index in range(len(images))]
        results: dict[int, DecodedImage] = {}
        complete = [0] * len(images)
        start = time.perf_counter()
        try:
            for name, image in zip(names, images, strict=True):
                engine.add_request(name, *make_request(image, logprobs))
            total = sum(image.grid.rows for image in images)
            with tqdm(total=total, unit="row", disable=not progress) as bar:
                while engine.has_unfinished_requests():
                    for output in engine.step():
                        index = int(output.request_id)
                        now = self._progress(output, images[index])
                        bar.update(now.complete_rows - complete[index])
                        complete[index] = now.complete_rows
                        if now.finished:
                            results[index] = DecodedImage(
                                tokens=list(output.outputs[0].token_ids),
                                codes=now.codes,
                                steps=now.steps or 0,
                                accepted_drafts=now.accepted_drafts,
                                seconds=time.perf_counter() - start,
                                logprobs=_logprobs(output, images[index].grid),
                            )
        except BaseException:
            engine.abort_request(names)
            raise
        return [results[index] for index in range(len(images))]

    def score(
        self, images: Sequence[PreparedImage], pictures: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float32]]:
        """Score finished pictures by the model's own likelihood, whoever drew them.

        Each token is predicted from the prompt and all tokens before it, in raster order, without
        guidance, temperature and cuts. A picture takes a forward pass per row.

        Args:
            images: What the pictures are of; prompt and size are read.
            pictures: Of each, the codes in raster order.

        Returns:
            Of each, float32 ``[rows, columns]``: the log-probability of every token, in nats.

        Raises:
            ImageTooLargeError, EngineUnavailableError: as :meth:`generate`.
        """
        given = [
            replace(
                image,
                prompts=replace(image.prompts, unconditional=[]),
                params=ImageParams(window=image.grid.columns, temperature=0.0),
                picture=tuple(codes),
            )
            for image, codes in zip(images, pictures, strict=True)
        ]
        scored = [done.logprobs for done in self.decode(given, logprobs=True)]
        return [logprobs for logprobs in scored if logprobs is not None]

    def _progress(self, output: RequestOutput, image: PreparedImage) -> ImageProgress:
        now = read_progress(output, self.model.spec.vocabulary, image.grid)
        if now.finished and now.complete_rows < image.grid.rows:
            raise EngineUnavailableError(f"an image ended after {now.complete_rows} rows")
        return now

    def _render(
        self, images: Sequence[PreparedImage], decoded: Sequence[DecodedImage]
    ) -> Iterator[Image.Image]:
        for grid, group in groupby(
            zip(images, decoded, strict=True), key=lambda pair: pair[0].grid
        ):
            codes = torch.tensor([done.codes for _, done in group])
            codes = codes.view(-1, grid.rows, grid.columns)
            for first in range(0, len(codes), MAX_BATCH):
                for pixels in self.model.decode(codes[first : first + MAX_BATCH]).cpu().numpy():
                    yield Image.fromarray(pixels)


@contextmanager
def _starting(in_process: bool) -> Iterator[None]:
    """Start an engine in this process, where it needs no other, and leave no trace in it."""
    environment, affinity = dict(os.environ), os.sched_getaffinity(0)
    set_num_threads = torch.set_num_threads
    if in_process:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("OMP_NUM_THREADS", str(num_cores()))
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads  # vLLM's CPU worker puts a stub in its place
        os.sched_setaffinity(0, affinity)
        os.environ.clear()
        os.environ.update(environment)


def _logprobs(output: RequestOutput, grid: Grid) -> NDArray[np.float32] | None:
    positions = output.outputs[0].logprobs
    if positions is None:
        return None
    values = [next(iter(tokens.values())).logprob for tokens in positions]
    table = np.array(values, dtype=np.float32).reshape(grid.rows, grid.stride)
    return table[:, : grid.columns]
