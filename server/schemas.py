"""Requests and responses of the Images API, as clients send and expect them.

Source: the OpenAI Images API (``openai.types.images_response`` and ``image_generate_params`` of
the openai package, 3.x), with extensions in common use and ``zipar`` for what is ours.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from zipar_vllm.config import MAX_SEED

MAX_PROMPT_CHARACTERS = 32_000


def _auto_is_none(value: Any) -> Any:
    return None if value == "auto" else value


Prompt = Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARACTERS)]


class ZiparOptions(BaseModel):
    """How the picture is decoded."""

    model_config = ConfigDict(strict=True, extra="ignore")

    window: Annotated[int | None, BeforeValidator(_auto_is_none)] = None
    adaptive: bool | None = None


class ImageGenerationRequest(BaseModel):
    """Body of ``POST /v1/images/generations``: unknown fields are ignored, null is a default."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)

    prompt: Annotated[Prompt, StringConstraints(min_length=1)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = None
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None = (
        None
    )
    background: str | None = None
    output_format: str | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    moderation: Literal["low", "auto"] | None = None
    response_format: str | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    style: str | None = None
    user: str | None = None

    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    negative_prompt: Prompt | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None, validation_alias=AliasChoices("guidance_scale", "cfg_scale")
    )
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    zipar: ZiparOptions | None = None


class InputTokensDetails(BaseModel):
    """Of which kind the input tokens are."""

    image_tokens: int = 0
    text_tokens: int


class Usage(BaseModel):
    """Tokens read and drawn."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    total_tokens: int


class Seconds(BaseModel):
    """Where an image's time went; the slowest image where there are several."""

    queue: float
    decode: float
    pixels: float


class ZiparReport(BaseModel):
    """How the pictures were decoded: forward passes as the engine counted them."""

    steps: int
    window: int
    seconds: Seconds


class ImageData(BaseModel):
    """One picture."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int


class ImagesResponse(BaseModel):
    """Answer to a request that does not stream."""

    created: int
    data: list[ImageData]
    background: str = "opaque"
    output_format: str
    quality: str
    size: str
    usage: Usage
    zipar: ZiparReport
