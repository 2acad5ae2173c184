"""The front door for Python: prompts in, pictures out, without a server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from .engine.arguments import engine_arguments
from .engine.capacity import check_capacity
from .engine.client import read_progress
from .engine.request import make_job, make_request
from .engine.vllm_api import LLM, RequestOutput
from .errors import EngineUnavailableError
from .models.demo import DEMO_PATH
from .models.registry import load_image_model
from .params import ImageOptions, ImageParams, parse
from .prepare import PreparedImage, make_seeds, prepare_images

DEMO_KV_CACHE_BYTES = 256 << 20
"""KV cache of the embedded model where nothing else is asked for: some 70 guided images."""
RENDER_BATCH = 16


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """A picture, and how it came about.

    Attributes:
        prompt: What was asked for.
        image: The picture, RGB.
        tokens: Token ids in raster order, row terminators included.
        params: How it was decoded; its ``seed`` gives the same picture again.
        steps: Forward passes, as the engine counted them.
        seconds: From being handed to the engine to the last token; pixels come on top.
    """

    prompt: str
    image: Image.Image
    tokens: list[int]
    params: ImageParams
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A picture's tokens, before they are rendered.

    Attributes:
        tokens: Token ids in raster order, row terminators included.
        codes: Image codes in raster order.
        steps: Forward passes, as the engine counted them.
        seconds: From being handed to the engine to the last token.
    """

    tokens: list[int]
    codes: list[int]
    steps: int
    seconds: float


class ImageLLM:
    """An image model in this process, as :class:`vllm.LLM` is a language model.

        with ImageLLM() as llm:
            for result in llm.generate(["red apple", "pizza"], window=4, seed=7):
                result.image.save(f"{result.prompt}.png")

    The engine starts when the block is entered, or with the first pictures.

    Args:
        model: Folder of an image model; None is the embedded one.
        **engine_args: Further arguments of :class:`vllm.LLM`, such as ``dtype``,
            ``max_num_seqs`` or ``tensor_parallel_size``.

    Raises:
        ValueError: the folder holds no image model.
    """

    def __init__(self, model: str | Path | None = None, **engine_args: Any) -> None:
        path = DEMO_PATH if model is None else Path(model)
        self.model = load_image_model(path)
        self._arguments = engine_arguments(path)
        if model is None:
            self._arguments["kv_cache_memory_bytes"] = DEMO_KV_CACHE_BYTES
        self._arguments |= engine_args
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
        progress: bool = True,
        **options: Any,
    ) -> list[GeneratedImage]:
        """Generate a picture of each prompt, all of them in one batch as far as memory allows.

        Args:
            prompts: One prompt, or several.
            seed: Of the first picture, the next one has one more; or a seed for each; drawn and
                told in the results if None.
            progress: Whether to show a bar of the rows that are complete.
            **options: Fields of :class:`~zipar_vllm.params.ImageOptions`: ``size``, ``window``,
                ``adaptive``, ``guidance_scale``, ``temperature``, ... The model's defaults apply to
                the others.

        Returns:
            The results, in the order of the prompts.

        Raises:
            InvalidOptionError: names the option, what came and what is allowed.
            ImageTooLargeError: the engine's memory can never hold an image.
            EngineUnavailableError: the engine gave an image up.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        images = self.prepare(prompts, seed=seed, **options)
        decoded = self.decode(images, progress=progress)
        pictures = self._render(images, decoded)
        return [
            GeneratedImage(prompt, picture, done.tokens, image.params, done.steps, done.seconds)
            for prompt, picture, image, done in zip(prompts, pictures, images, decoded, strict=True)
        ]

    def decode(
        self, images: Sequence[PreparedImage], *, progress: bool = False
    ) -> list[DecodedImage]:
        """Decode prepared images to tokens, without rendering them.

        Raises:
            ImageTooLargeError, EngineUnavailableError: as :meth:`generate`.
        """
        engine = self.llm.llm_engine
        for image in images:
            check_capacity(make_job(image), engine.vllm_config)
        results: dict[int, DecodedImage] = {}
        rows = [0] * len(images)
        start = time.perf_counter()
        names = [str(index) for index in range(len(images))]
        total = sum(image.grid.rows for image in images)
        try:
            for name, image in zip(names, images, strict=True):
                engine.add_request(name, *make_request(image))
            with tqdm(total=total, unit="row", disable=not progress) as bar:
                while engine.has_unfinished_requests():
                    for output in engine.step():
                        index = int(output.request_id)
                        done = self._take(output, images[index], time.perf_counter() - start)
                        bar.update(len(done.codes) // images[index].grid.columns - rows[index])
                        rows[index] = len(done.codes) // images[index].grid.columns
                        if output.finished:
                            results[index] = done
        except BaseException:
            engine.abort_request(names)
            raise
        return [results[index] for index in range(len(images))]

    def _take(self, output: RequestOutput, image: PreparedImage, seconds: float) -> DecodedImage:
        now = read_progress(output, self.model.spec.vocabulary, image.grid)
        if output.finished and now.complete_rows < image.grid.rows:
            raise EngineUnavailableError(f"an image ended after {now.complete_rows} rows")
        return DecodedImage(list(output.outputs[0].token_ids), now.codes, now.steps or 0, seconds)

    def _render(
        self, images: Sequence[PreparedImage], decoded: Sequence[DecodedImage]
    ) -> Iterator[Image.Image]:
        for grid, group in groupby(
            zip(images, decoded, strict=True), key=lambda pair: pair[0].grid
        ):
            codes = torch.tensor([done.codes for _, done in group])
            codes = codes.view(-1, grid.rows, grid.columns)
            for first in range(0, len(codes), RENDER_BATCH):
                for pixels in self.model.decode(codes[first : first + RENDER_BATCH]).cpu().numpy():
                    yield Image.fromarray(pixels)
