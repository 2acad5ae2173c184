"""A request with every default filled in, and the checks that only the model can make."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from zipar_vllm.config import MAX_SEED, ImageParams
from zipar_vllm.core.grid import Grid
from zipar_vllm.models.base import ImageModel

from .errors import from_validation, invalid
from .pixels import DEFAULT_COMPRESSION, Encoding
from .schemas import FORMATS, ImageGenerationRequest, InputTokensDetails, Usage

REQUEST_SCHEMA = ImageGenerationRequest.model_json_schema()
T = TypeVar("T")

QUALITIES = {"standard": "medium", "hd": "high", "auto": "high"}
"""Names of qualities that requests have and answers do not."""
MAX_DRAWN_SEED = 2**31 - 1
"""Seeds drawn here stay exact in JSON readers that know only doubles."""


@dataclass(frozen=True, slots=True)
class ImageJob:
    """A request with every default filled in.

    Attributes:
        size: ``WxH`` in pixels.
        grid: Its token grid.
        prompt_ids, unconditional_ids: Prompts of the two lanes; the second is empty unguided.
        params: Options of the first image; image k has its seed + k.
        count: Number of images.
        encoding: File format.
        as_url: Answer by address and not by content.
        quality: As the client named it; it changes nothing.
        timeout: Seconds an image may take; the server's limit holds as well.
    """

    size: str
    grid: Grid
    prompt_ids: list[int]
    unconditional_ids: list[int]
    params: ImageParams
    count: int
    encoding: Encoding
    as_url: bool
    quality: str
    timeout: float | None

    @property
    def usage(self) -> Usage:
        """Tokens of all images together."""
        prompt = len(self.prompt_ids) * self.count
        drawn = self.grid.num_sampled * self.count
        return Usage(
            input_tokens=prompt,
            input_tokens_details=InputTokensDetails(text_tokens=prompt),
            output_tokens=drawn,
            total_tokens=prompt + drawn,
        )


def parse_request(data: dict[str, Any]) -> ImageGenerationRequest:
    """Read a request's body.

    Raises:
        APIError: 400, naming the field, what came and what is allowed.
    """
    try:
        return ImageGenerationRequest.model_validate(data)
    except ValidationError as error:
        raise from_validation(error, REQUEST_SCHEMA) from None


def prepare_job(
    request: ImageGenerationRequest, model: ImageModel, *, has_storage: bool
) -> ImageJob:
    """Fill in defaults and check what only the model can tell.

    Raises:
        APIError: 400, naming the field, what came and what is allowed.
    """
    _refuse_unsupported(request, has_storage)
    spec, defaults = model.spec, model.spec.defaults
    size = request.size or next(iter(spec.grids))
    if size not in spec.grids:
        raise invalid("size", size, " or ".join(["auto", *spec.grids]))
    grid = spec.grids[size]
    guidance = _default(request.guidance_scale, defaults.guidance_scale)
    prompt = model.encode_prompt(request.prompt)
    unconditional = model.encode_unconditional(request.negative_prompt) if guidance != 1 else []
    for name, ids in (("prompt", prompt), ("negative_prompt", unconditional)):
        if len(ids) > spec.max_prompt_tokens:
            raise invalid(name, f"{len(ids)} tokens", f"up to {spec.max_prompt_tokens} tokens")
    count, quality = request.n or 1, request.quality or "auto"
    params = ImageParams(
        rows=grid.rows,
        columns=grid.columns,
        window=_window(request, defaults.window, grid),
        adaptive=bool(request.zipar and request.zipar.adaptive),
        seed=_seed(request.seed, count),
        unconditional_length=len(unconditional),
        guidance_scale=guidance,
        temperature=_default(request.temperature, defaults.temperature),
        top_k=_default(request.top_k, defaults.top_k),
        top_p=_default(request.top_p, defaults.top_p),
    )
    return ImageJob(
        size=size,
        grid=grid,
        prompt_ids=prompt,
        unconditional_ids=unconditional,
        params=params,
        count=count,
        encoding=_encoding(request),
        as_url=request.response_format == "url",
        quality=QUALITIES.get(quality, quality),
        timeout=request.zipar.timeout if request.zipar else None,
    )


def _refuse_unsupported(request: ImageGenerationRequest, has_storage: bool) -> None:
    """What the contract knows and this server cannot honour is refused by name."""
    if not request.prompt.strip():
        raise invalid("prompt", request.prompt, "a text that is not blank")
    if request.background not in (None, "opaque"):
        raise invalid("background", request.background, "auto or opaque")
    if request.output_format not in (None, *FORMATS):
        raise invalid("output_format", request.output_format, ", ".join(FORMATS))
    if request.response_format not in (None, "b64_json", "url"):
        raise invalid("response_format", request.response_format, "b64_json or url")
    if request.response_format == "url" and not has_storage:
        raise invalid("response_format", "url", "b64_json (this server has no storage)")
    if request.stream and (request.n or 1) > 1:
        raise invalid("n", request.n, "1 with stream, whose events name no image")
    if request.output_compression is not None and request.output_format not in ("webp", "jpeg"):
        raise invalid("output_compression", request.output_compression, "given with webp or jpeg")


def _window(request: ImageGenerationRequest, default: int, grid: Grid) -> int:
    asked = request.zipar.window if request.zipar else None
    window = min(default, grid.columns) if asked is None else asked
    if not 1 <= window <= grid.columns:
        raise invalid("zipar.window", window, f"1 to {grid.columns} (plain raster order)")
    return window


def _seed(asked: int | None, count: int) -> int:
    if asked is None:
        return secrets.randbelow(MAX_DRAWN_SEED - count)
    if asked + count - 1 > MAX_SEED:
        raise invalid("seed", asked, f"up to {MAX_SEED - count + 1} with n = {count}")
    return asked


def _encoding(request: ImageGenerationRequest) -> Encoding:
    quality = request.output_compression
    return Encoding(
        format=request.output_format or "png",
        quality=DEFAULT_COMPRESSION if quality is None else quality,
    )


def _default(value: T | None, default: T) -> T:
    return default if value is None else value
