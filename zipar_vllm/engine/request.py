"""An image as a vLLM request: the only file that knows what travels in ``extra_args``.

Both lanes' prompts travel as one prompt, the conditional one first, so that vLLM's own chunking
and token budget see every token that has to be computed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StrictInt

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.params import ImageParams, parse
from zipar_vllm.prepare import PreparedImage

from .vllm_api import EmbedsPrompt, RequestOutputKind, SamplingParams, TokensPrompt

EXTRA_ARGS_KEY = "zipar"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageArgs(ImageParams):
    """The value of ``SamplingParams.extra_args["zipar"]``: parameters, grid and lanes.

    Attributes:
        rows, columns: The grid; whether rows are terminated is the model's to say.
        unconditional_length: How many of the request's last prompt tokens are the prompt of the
            unconditional lane; 0 turns guidance off.
        picture: Codes of a finished picture in raster order, to be scored instead of drawn.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    rows: Annotated[StrictInt, Field(ge=1)]
    columns: Annotated[StrictInt, Field(ge=1)]
    unconditional_length: Annotated[StrictInt, Field(ge=0)] = 0
    picture: tuple[Annotated[StrictInt, Field(ge=0)], ...] = ()


def make_request(
    image: PreparedImage, logprobs: bool = False
) -> tuple[TokensPrompt | EmbedsPrompt, SamplingParams]:
    """Phrase an image as a vLLM request.

    Args:
        image: The image.
        logprobs: Whether the log-probabilities of its tokens are wanted.
    """
    conditional, unconditional = image.prompts.conditional, image.prompts.unconditional
    args = ImageArgs(
        **asdict(image.params),
        rows=image.grid.rows,
        columns=image.grid.columns,
        unconditional_length=len(unconditional),
        picture=image.picture,
    )
    sampling = SamplingParams(
        max_tokens=image.grid.num_positions,
        ignore_eos=True,
        detokenize=False,
        logprobs=0 if logprobs else None,
        extra_args={EXTRA_ARGS_KEY: asdict(args)},
        output_kind=RequestOutputKind.CUMULATIVE,
    )
    if image.prompts.embeddings is not None:
        return EmbedsPrompt(prompt_embeds=image.prompts.embeddings), sampling
    return TokensPrompt(prompt_token_ids=[*conditional, *unconditional]), sampling


def make_job(image: PreparedImage) -> ImageJob:
    """Make the job that the engine will read off the image's request."""
    prompts = image.prompts
    lanes = tuple(len(ids) for ids in (prompts.conditional, prompts.unconditional) if ids)
    return ImageJob(image.grid, image.params, lanes, picture=image.picture)


def read_job(
    prompt_length: int, sampling: SamplingParams | None, vocabulary: Vocabulary
) -> ImageJob:
    """Read and check an image that any vLLM client may have asked for.

    Args:
        prompt_length: Tokens of the request's prompt, both lanes.
        sampling: The request's sampling parameters.
        vocabulary: The model's.

    Raises:
        InvalidOptionError: an option is missing or out of range.
    """
    extra: Any = (sampling.extra_args if sampling else None) or {}
    options = extra.get(EXTRA_ARGS_KEY)
    if sampling is None or not isinstance(options, dict):
        problem = f"got {options!r}, needed is a table of options"
        raise InvalidOptionError(f"extra_args.{EXTRA_ARGS_KEY}", problem)
    args = parse(ImageArgs, options)
    grid = Grid(args.rows, args.columns, vocabulary.is_terminated)
    unconditional = args.unconditional_length
    if unconditional >= prompt_length:
        allowed = f"less than the prompt's {prompt_length} tokens"
        raise InvalidOptionError.of("unconditional_length", unconditional, allowed)
    if sampling.max_tokens != grid.num_positions:
        raise InvalidOptionError.of("max_tokens", sampling.max_tokens, str(grid.num_positions))
    if sampling.n != 1:
        raise InvalidOptionError.of("n", sampling.n, "1")
    if sampling.logprobs not in (None, 0):
        raise InvalidOptionError.of("logprobs", sampling.logprobs, "0: of the tokens themselves")
    if sampling.prompt_logprobs is not None:
        raise InvalidOptionError.of("prompt_logprobs", sampling.prompt_logprobs, "none")
    params = ImageParams(**{name: getattr(args, name) for name in ImageParams.__dataclass_fields__})
    lanes = (prompt_length - unconditional, *([unconditional] if unconditional else []))
    if args.picture:
        _check_picture(args, grid, vocabulary)
    logprobs = sampling.logprobs is not None
    job = ImageJob(grid, params, lanes, logprobs=logprobs, picture=args.picture)
    _ = job.policy  # refuses what it cannot follow
    return job


def _check_picture(args: ImageArgs, grid: Grid, vocabulary: Vocabulary) -> None:
    """Refuse a picture that is none of the grid and the codebook, or with drafts."""
    needed = grid.rows * grid.columns
    if len(args.picture) != needed:
        raise InvalidOptionError(
            "picture", f"got {len(args.picture)} codes, allowed is {needed}: one per token"
        )
    if max(args.picture) >= vocabulary.num_codes:
        allowed = f"codes of 0 to {vocabulary.num_codes - 1}"
        raise InvalidOptionError.of("picture", max(args.picture), allowed)
    if args.drafts:
        raise InvalidOptionError.of("drafts", args.drafts, "0 with a picture")
