"""Ask a running vLLM engine for images: one vLLM request per image, tokens back row by row."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.errors import EngineUnavailableError
from zipar_vllm.models.base import ImageModelSpec
from zipar_vllm.prepare import PreparedImage
from zipar_vllm.progress import ImageProgress

from .borrowed import get_accepted_drafts, get_steps
from .capacity import check_capacity
from .request import make_job, make_request
from .vllm_api import EngineClient, EngineDeadError, EngineGenerateError, RequestOutput


class ImageClient:
    """Streams pictures from vLLM's engine client; closing the stream aborts the request.

    Args:
        engine: A running vLLM engine, started with
            :func:`~zipar_vllm.engine.arguments.engine_arguments`.
        spec: The facts of the model it runs.
    """

    def __init__(self, engine: EngineClient, spec: ImageModelSpec) -> None:
        self._engine = engine
        self._vocabulary = spec.vocabulary

    async def generate(
        self, request_id: str, image: PreparedImage
    ) -> AsyncGenerator[ImageProgress, None]:
        """Decode one image; yield it when it is begun and each time more rows are complete.

        Args:
            request_id: Unique among running requests.
            image: What to decode.

        Raises:
            EngineUnavailableError: the engine gave the request up.
            ImageTooLargeError: the KV cache can never hold the image.
        """
        check_capacity(make_job(image), self._engine.vllm_config)
        prompt, sampling = make_request(image)
        try:
            async with aclosing(self._engine.generate(prompt, sampling, request_id)) as outputs:
                async for output in outputs:
                    progress = read_progress(output, self._vocabulary, image.grid)
                    if output.finished and progress.complete_rows < image.grid.rows:
                        raise EngineUnavailableError(f"ended after {progress.complete_rows} rows")
                    yield progress
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineUnavailableError("the engine died", dead=True) from error


def read_progress(output: RequestOutput, vocabulary: Vocabulary, grid: Grid) -> ImageProgress:
    """Read an image off what vLLM says of its request."""
    codes = vocabulary.codes_of_picture(output.outputs[0].token_ids)
    return ImageProgress(
        codes=codes,
        complete_rows=len(codes) // grid.columns,
        finished=output.finished,
        steps=get_steps(output),
        accepted_drafts=get_accepted_drafts(output),
        queue_seconds=_queue_seconds(output.metrics),
    )


def _queue_seconds(metrics: Any) -> float | None:
    if metrics is None or not metrics.scheduled_ts:
        return None
    return float(metrics.scheduled_ts - metrics.queued_ts)
