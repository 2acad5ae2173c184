"""Requests and responses of the Images API, as clients send and expect them.

Source: the OpenAI Images API (``openai.types.images_response`` and ``image_generate_params`` of
the openai package, 3.x), with extensions in common use and ``zipar`` for what is ours.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from zipar_vllm.params import GuidanceScale, NumDrafts, PolicyOptions, SamplingOptions, Seed

from .pixels import Format

MAX_PROMPT_CHARACTERS = 32_000
MAX_IMAGES = 10
MAX_PARTIAL_IMAGES = 3
Prompt = Annotated[str, StringConstraints(max_length=MAX_PROMPT_CHARACTERS)]


class _Body(BaseModel):
    """Unknown fields are ignored; null and ``auto`` leave a field at its default."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        as_sent = ("prompt", "negative_prompt", "drafts")  # where "auto" is a value of its own
        return {
            name: value
            for name, value in data.items()
            if name in as_sent or (value is not None and value != "auto")
        }


UNSUPPORTED = {
    "control_image": "the model draws from text only",
    "height": "say it in size",
    "image": "the model draws from text only",
    "image_url": "the model draws from text only",
    "images": "the model draws from text only",
    "init_image": "the model draws from text only",
    "input_fidelity": "the model draws from text only",
    "layers": "pictures have one layer",
    "lora": "the server has none",
    "loras": "the server has none",
    "mask": "the model draws from text only",
    "reference_images": "the model draws from text only",
    "strength": "the model draws from text only",
    "true_cfg_scale": "say it in guidance_scale",
    "width": "say it in size",
}
"""Fields that other servers have and that would change the picture, with the reason or the way.

They are refused by name: a client that sends one would get another picture than it asked for.
Unknown fields without effect are ignored.
"""


class ZiparOptions(_Body, PolicyOptions):
    """How the picture is decoded, and for how many seconds at most (``timeout``).

    A row starts when the one above is ``window`` tokens ahead; an ``adaptive`` window is the least
    that rows wait for, until their first token is settled. ``policy`` names one of the decoding
    policies that the server has. ``drafts`` is how many steps ahead tokens are guessed, to the same
    picture in fewer passes; "auto" leaves the number to the server.
    """

    model_config = _Body.model_config

    timeout: Annotated[float, Field(gt=0, le=86_400)] | None = None


class ImageGenerationRequest(_Body, SamplingOptions):
    """Body of ``POST /v1/images/generations``."""

    model_config = _Body.model_config

    prompt: Annotated[Prompt, StringConstraints(min_length=1)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: str | None = None
    quality: Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"] | None = (
        None
    )
    background: Literal["auto", "opaque"] | None = None
    output_format: Literal["auto", Format] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    moderation: Literal["low", "auto"] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = None
    style: str | None = None
    user: str | None = None

    seed: Seed | Annotated[list[Seed], Field(min_length=1, max_length=MAX_IMAGES)] | None = None
    negative_prompt: Prompt | None = None
    guidance_scale: GuidanceScale | None = Field(
        default=None, validation_alias=AliasChoices("guidance_scale", "cfg_scale")
    )
    zipar: ZiparOptions | None = None


def request_schema() -> dict[str, Any]:
    """JSON schema of a request, without references; sizes and windows are the model's to say."""
    schema = ImageGenerationRequest.model_json_schema(by_alias=False)
    options = schema.pop("$defs")[ZiparOptions.__name__]
    schema["properties"]["zipar"] = {"anyOf": [options, {"type": "null"}]}
    return schema


def option_ranges() -> dict[str, dict[str, float]]:
    """Least and most of each number that says how tokens are sampled, as a JSON schema has it."""
    ranges = {}
    for name, field in SamplingOptions.model_json_schema()["properties"].items():
        kind = field["anyOf"][0]
        if kind["type"] in ("integer", "number"):
            low = kind.get("minimum", kind.get("exclusiveMinimum"))
            ranges[name] = {"min": low, "max": kind["maximum"]}
    return ranges


class ErrorBody(BaseModel):
    """What went wrong: ``message`` for people, ``code`` for programs, ``param`` the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """Every error's body."""

    error: ErrorBody


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
    """How the pictures were decoded: forward passes as the engine counted them.

    ``accepted_drafts`` is the share of the drafts that were right; left out where there were none.
    """

    steps: int
    window: int
    adaptive: bool
    policy: str
    drafts: NumDrafts
    accepted_drafts: float | None = None
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
