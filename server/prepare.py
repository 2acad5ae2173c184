"""From a request's body to images with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zipar_vllm.errors import InvalidOptionError, shorten
from zipar_vllm.models.base import ImageModel
from zipar_vllm.params import ImageOptions, PolicyOptions, SamplingOptions, parse
from zipar_vllm.prepare import PreparedImage, make_seeds, prepare_images

from .errors import invalid
from .pixels import DEFAULT_COMPRESSION, LOSSY_FORMATS, Encoding
from .schemas import (
    UNSUPPORTED,
    ImageGenerationRequest,
    InputTokensDetails,
    Usage,
    ZiparOptions,
)

QUALITIES = {"standard": "medium", "hd": "high", "auto": "high"}
"""Names of qualities that requests have and answers do not."""


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request with every default filled in.

    Attributes:
        images: The images, alike but for their seeds.
        encoding: File format.
        as_url: Answer by address and not by content.
        quality: As the client named it; it changes nothing.
        timeout: Seconds an image may take; the server's limit holds as well.
    """

    images: list[PreparedImage]
    encoding: Encoding
    as_url: bool
    quality: str
    timeout: float | None

    @property
    def size(self) -> str:
        """``WxH`` in pixels."""
        return self.images[0].size

    @property
    def usage(self) -> Usage:
        """Tokens of all images together."""
        first, count = self.images[0], len(self.images)
        prompt = len(first.prompts.conditional) * count
        sampled = first.grid.num_sampled * count
        return Usage(
            input_tokens=prompt,
            input_tokens_details=InputTokensDetails(text_tokens=prompt),
            output_tokens=sampled,
            total_tokens=prompt + sampled,
        )


def parse_request(data: Mapping[str, Any]) -> ImageGenerationRequest:
    """Check a request's body as far as its schema goes.

    Raises:
        InvalidOptionError: names the field, what came and what is allowed.
    """
    for name, reason in UNSUPPORTED.items():
        if data.get(name) not in (None, "auto", "", [], {}):
            problem = f"got {shorten(data[name])}, which is not supported: {reason}"
            raise InvalidOptionError(name, problem, "unsupported")
    return parse(ImageGenerationRequest, data)


def prepare_request(
    request: ImageGenerationRequest,
    model: ImageModel,
    *,
    has_storage: bool,
    nearest_size: bool = False,
) -> PreparedRequest:
    """Fill in defaults and check what only the model and the server can tell.

    Raises:
        APIError: 400, naming the field, what came and what is allowed.
        InvalidOptionError: as an :class:`APIError` of 400.
    """
    if request.response_format == "url" and not has_storage:
        raise invalid("response_format", "url", "b64_json (this server has no storage)")
    seeds = request.seed
    count = request.n or (len(seeds) if isinstance(seeds, list) else 1)
    if request.stream and count > 1:
        raise invalid("n", count, "1 with stream, whose events name no image")
    compression = request.output_compression
    if compression is not None and request.output_format not in LOSSY_FORMATS:
        raise invalid("output_compression", compression, f"given with {' or '.join(LOSSY_FORMATS)}")
    wanted = request.output_format
    zipar = request.zipar or ZiparOptions()
    quality = request.quality or "auto"
    return PreparedRequest(
        images=prepare_images(
            model,
            request.prompt,
            _wishes(request, zipar),
            make_seeds(seeds, count),
            nearest_size=nearest_size,
        ),
        encoding=Encoding(
            format="png" if wanted is None or wanted == "auto" else wanted,
            quality=DEFAULT_COMPRESSION if compression is None else compression,
        ),
        as_url=request.response_format == "url",
        quality=QUALITIES.get(quality, quality),
        timeout=zipar.timeout,
    )


def _wishes(request: ImageGenerationRequest, zipar: ZiparOptions) -> ImageOptions:
    """The request's wishes about the image, which are checked already."""
    return ImageOptions.model_construct(
        size=request.size,
        **{name: getattr(request, name) for name in SamplingOptions.model_fields},
        **{name: getattr(zipar, name) for name in PolicyOptions.model_fields},
    )
