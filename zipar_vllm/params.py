"""The options of an image: their types and ranges, stated once.

The HTTP schema, the command line, :class:`zipar_vllm.ImageLLM` and the requests of other vLLM
clients all check options by the annotated types of this file. :class:`ImageOptions` is what a
caller wishes, where anything may be left open; :class:`ImageParams` is what the engine decodes by,
complete and checked, and nothing behind the edges checks it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)

from .errors import InvalidOptionError

MAX_SEED = 2**63 - 1

# Strict: a text is not taken for a number, nor a truth value.
Seed = Annotated[StrictInt, Field(ge=0, le=MAX_SEED)]
GuidanceScale = Annotated[StrictFloat, Field(ge=0, le=100)]
Temperature = Annotated[StrictFloat, Field(ge=0, le=10)]
TopK = Annotated[StrictInt, Field(ge=0, le=1_000_000)]
TopP = Annotated[StrictFloat, Field(gt=0, le=1)]
MinP = Annotated[StrictFloat, Field(ge=0, le=1)]
MAX_DRAFTS = 64
NumDrafts = Annotated[StrictInt, Field(ge=0, le=MAX_DRAFTS)] | Literal["auto"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParams:
    """How one image is decoded.

    Attributes:
        window: How many tokens of a row have to be decoded before the next row may start, 1 to the
            grid's columns, which is plain raster order. The policy checks it against the grid.
        policy: Name of the decoding policy (:mod:`zipar_vllm.decoding.policy`).
        drafts: How many plain steps a pass looks ahead at most
            (:mod:`zipar_vllm.decoding.drafted_window`); "auto" leaves the number to the scheduler.
        seed: Keys the sampling noise.
        guidance_scale: Classifier-free guidance g in ``u + g * (c - u)``.
        temperature: 0 is greedy.
        top_k: 0 keeps every image token.
        top_p: 1 keeps every image token.
        min_p: Tokens less likely than this share of the likeliest are left out; 0 keeps all.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    window: StrictInt
    policy: StrictStr = "fixed_window"
    drafts: NumDrafts = 0
    seed: Seed = 0
    guidance_scale: GuidanceScale = 1.0
    temperature: Temperature = 1.0
    top_k: TopK = 0
    top_p: TopP = 1.0
    min_p: MinP = 0.0


class PolicyOptions(BaseModel):
    """Wishes about the order in which tokens are decoded; None leaves one to the model.

    ``adaptive`` is short for the policy ``adaptive_window``. ``drafts`` changes no picture.
    """

    model_config = ConfigDict(extra="forbid")

    window: StrictInt | None = None
    adaptive: StrictBool | None = None
    policy: StrictStr | None = None
    drafts: NumDrafts | None = None


class SamplingOptions(BaseModel):
    """Wishes about how tokens are sampled; None leaves one to the model."""

    model_config = ConfigDict(extra="forbid")

    negative_prompt: StrictStr | None = None
    guidance_scale: GuidanceScale | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    min_p: MinP | None = None


class ImageOptions(PolicyOptions, SamplingOptions):
    """All wishes about an image beside its prompt; a model's defaults are one of these too.

    Attributes:
        size: ``WxH`` in pixels, one that the model offers; None takes its first.
    """

    size: StrictStr | None = None


def parse(kind: type[T], data: object) -> T:
    """Check outside data.

    Args:
        kind: A pydantic model, a dataclass of annotated fields, or an annotated type.
        data: What came; a table of fields for the first two.

    Raises:
        InvalidOptionError: the first mistake; names the option, what came and what is allowed.
    """
    try:
        checked: T = _adapter(cast(Any, kind)).validate_python(data)
    except ValidationError as error:
        raise _first_mistake(error, _schema(cast(Any, kind))) from None
    return checked


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@lru_cache
def _schema(kind: Any) -> dict[str, Any]:
    return _adapter(kind).json_schema(by_alias=False)


def _first_mistake(error: ValidationError, schema: Mapping[str, Any]) -> InvalidOptionError:
    first = error.errors(include_url=False)[0]
    names = _fields_of(first["loc"], schema)
    field = ".".join(names) or "options"
    if first["type"] == "missing":
        return InvalidOptionError(field, "missing, it is required", "missing")
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = ", ".join(sorted(schema["properties"]))
        return InvalidOptionError(field, f"unknown, allowed are {known}", "unknown")
    return InvalidOptionError.of(field, first["input"], allowed_by(schema, names) or first["msg"])


def _fields_of(location: tuple[int | str, ...], schema: Mapping[str, Any]) -> list[str]:
    """The names of fields in pydantic's location, which goes on into the choices of a union."""
    names: list[str] = []
    field = schema
    for part in map(str, location):
        properties = field.get("properties", {})
        name = FIELD_ALIASES.get(part, part)
        if names and name not in properties:
            break
        names.append(part)
        field = _without_null(properties.get(name, {}), schema.get("$defs", {}))
    return names


FIELD_ALIASES = {"cfg_scale": "guidance_scale"}
"""Other names of fields, which a JSON schema has no place for."""

_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "a text",
    "object": "an object",
}


def allowed_by(schema: Mapping[str, Any], names: list[str]) -> str | None:
    """Put into words what the JSON schema of a request allows in a field; None if it does not say.

    Args:
        schema: Of the whole request.
        names: The field's name, behind those of the fields it lies in.
    """
    field: Mapping[str, Any] = schema
    for name in names:
        inner = field.get("properties", {}).get(FIELD_ALIASES.get(name, name), {})
        field = _without_null(inner, schema.get("$defs", {}))
    choices = [words for choice in field.get("anyOf", [field]) if (words := _words(choice))]
    return " or ".join(choices) or None


def _words(field: Mapping[str, Any]) -> str | None:
    if "const" in field:
        return str(field["const"])
    if "enum" in field:
        return " or ".join(str(value) for value in field["enum"])
    if field.get("type") == "array":
        size = f" of 1 to {field['maxItems']}" if "maxItems" in field else ""
        return f"a list{size}, each {_words(field['items'])}"
    kind = _KINDS.get(str(field.get("type")))
    low = field.get("minimum", field.get("minLength"))
    high = field.get("maximum", field.get("maxLength"))
    if kind is None:
        return None
    if "exclusiveMinimum" in field:
        return f"{kind} above {field['exclusiveMinimum']:g} and up to {high:g}"
    if high is not None:
        unit = " characters" if field["type"] == "string" else ""
        return f"{kind}, {low or 0} to {high}{unit}"
    return kind if low is None else f"{kind}, {low} or more"


def _without_null(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """A field's schema, its reference followed, without the null that optional fields allow."""
    choices = [choice for choice in field.get("anyOf", [field]) if choice.get("type") != "null"]
    if len(choices) != 1:
        return {"anyOf": choices}
    reference = choices[0].get("$ref")
    found: Mapping[str, Any] = definitions[reference.rpartition("/")[2]] if reference else {}
    return found or choices[0]
