"""Ask a running vLLM engine for images: one vLLM request an image, tokens back row by row."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from zipar_vllm.config import ImageParams
from zipar_vllm.errors import EngineUnavailableError
from zipar_vllm.models.base import ImageModelSpec

from .capacity import check_capacity
from .job import ImageJob
from .vllm_api import (
    EngineClient,
    EngineDeadError,
    EngineGenerateError,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    TokensPrompt,
)


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """The picture so far.

    Attributes:
        codes: Image codes in raster order, 0 to the codebook size, terminators left out;
            always whole rows.
        rows: Rows they make.
        finished: Whether the picture is complete.
        steps: Forward passes the engine took, counted by it; None until finished.
        queue_seconds: Time between arrival and the first forward pass, None until known.
    """

    codes: list[int]
    rows: int
    finished: bool
    steps: int | None = None
    queue_seconds: float | None = None


def engine_request(
    prompt_ids: list[int], unconditional_ids: list[int], params: ImageParams, row_terminator: bool
) -> tuple[TokensPrompt, SamplingParams]:
    """Phrase an image as a vLLM request.

    Both lanes' prompts travel as one prompt, the conditional one first, so that vLLM's own
    chunking and token budget see every token that has to be computed.
    """
    sampling = SamplingParams(
        max_tokens=params.grid(row_terminator).num_slots,
        ignore_eos=True,
        detokenize=False,
        temperature=params.temperature,
        extra_args=params.to_extra_args(),
        output_kind=RequestOutputKind.CUMULATIVE,
    )
    return TokensPrompt(prompt_token_ids=[*prompt_ids, *unconditional_ids]), sampling


class ImageClient:
    """Streams pictures from vLLM's engine client; closing the stream aborts the request.

    Args:
        engine: A running vLLM engine, started with :func:`engine_arguments`.
        spec: The facts of the model it runs.
    """

    def __init__(self, engine: EngineClient, spec: ImageModelSpec) -> None:
        self._engine = engine
        self._spec = spec

    async def generate(
        self,
        request_id: str,
        prompt_ids: list[int],
        unconditional_ids: list[int],
        params: ImageParams,
    ) -> AsyncGenerator[ImageProgress, None]:
        """Decode one image and yield it each time more rows are complete.

        Args:
            request_id: Unique among running requests.
            prompt_ids: Conditional prompt.
            unconditional_ids: Unconditional prompt, empty without guidance; its length is
                ``params.unconditional_length``.
            params: Grid, window, guidance, sampling.

        Raises:
            EngineUnavailableError: the engine gave the request up.
            ImageTooLargeError: the KV cache can never hold the image.
        """
        terminated = self._spec.tokens.row_terminator is not None
        prompt, sampling = engine_request(prompt_ids, unconditional_ids, params, terminated)
        job = ImageJob.from_request(
            len(prompt_ids) + len(unconditional_ids), sampling, self._spec.tokens
        )
        check_capacity(job, self._engine.vllm_config)
        try:
            async with aclosing(self._engine.generate(prompt, sampling, request_id)) as outputs:
                async for output in outputs:
                    progress = self._progress(output, params)
                    if output.finished and progress.rows < params.rows:
                        raise EngineUnavailableError(f"ended after {progress.rows} rows")
                    yield progress
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineUnavailableError("the engine died", dead=True) from error

    def _progress(self, output: RequestOutput, params: ImageParams) -> ImageProgress:
        tokens = self._spec.tokens
        codes = [
            token - tokens.start
            for token in output.outputs[0].token_ids
            if token != tokens.row_terminator
        ]
        return ImageProgress(
            codes=codes,
            rows=len(codes) // params.columns,
            finished=output.finished,
            steps=_steps(output.kv_transfer_params),
            queue_seconds=_queue_seconds(output.metrics),
        )


def _steps(params: dict[str, Any] | None) -> int | None:
    return params.get("zipar_steps") if params else None


def _queue_seconds(metrics: Any) -> float | None:
    if metrics is None or not metrics.scheduled_ts:
        return None
    return float(metrics.scheduled_ts - metrics.queued_ts)
