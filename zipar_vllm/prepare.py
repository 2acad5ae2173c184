"""From a prompt and wishes to images that the engine can decode, by the model's own limits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zipar_vllm.core.grid import Grid
from zipar_vllm.decoding.policy import make_policy, policy_names
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.models.base import ImageModel, Prompts
from zipar_vllm.models.sizes import Sizes
from zipar_vllm.params import MAX_SEED, ImageOptions, ImageParams, Seed, parse

__all__ = ["PreparedImage", "make_seeds", "policy_names", "prepare_images"]

ADAPTIVE = "adaptive_window"
MAX_DRAWN_SEED = 2**31 - 1
"""Seeds drawn here stay exact in JSON readers that know only doubles."""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """One image, every default filled in.

    Attributes:
        size: ``WxH`` in pixels.
        grid: Its token grid.
        prompts: What each lane reads.
        params: How it is decoded.
        picture: Its codes in raster order, if it is finished and to be scored instead of drawn.
    """

    size: str
    grid: Grid
    prompts: Prompts
    params: ImageParams
    picture: tuple[int, ...] = ()


def prepare_images(
    model: ImageModel,
    prompt: str,
    options: ImageOptions,
    seeds: Sequence[int],
    *,
    nearest_size: bool = False,
) -> list[PreparedImage]:
    """Fill in the model's defaults and check what only the model can tell.

    Args:
        model: The image model.
        prompt: What to draw.
        options: Wishes.
        seeds: One per image, as :func:`make_seeds` gives them.
        nearest_size: Whether a size that the model cannot draw is taken for the nearest it can.

    Raises:
        InvalidOptionError: names the option, what came and what is allowed.
    """
    if not prompt.strip():
        raise InvalidOptionError.of("prompt", prompt, "a text that is not blank")
    spec = model.spec
    wishes = spec.defaults.model_copy(update=options.model_dump(exclude_none=True))
    size, grid = _size(spec.sizes, wishes.size, nearest_size)
    params = _params(wishes, options, grid)
    make_policy(grid, params)  # refuses what it cannot follow
    guided = params.guidance_scale != 1
    prompts = model.prompts(prompt, options.negative_prompt, grid, guided)
    for name, ids in (("prompt", prompts.conditional), ("negative_prompt", prompts.unconditional)):
        if len(ids) > spec.max_prompt_tokens:
            allowed = f"up to {spec.max_prompt_tokens} tokens"
            raise InvalidOptionError(name, f"got {len(ids)} tokens, allowed is {allowed}")
    return [PreparedImage(size, grid, prompts, replace(params, seed=seed)) for seed in seeds]


def make_seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """The seeds of a request's images.

    Args:
        seed: Image k has ``seed`` + k, or the k-th of several; drawn if None.
        count: Number of images.

    Raises:
        InvalidOptionError: there are not as many as images, or one is larger than a seed may be.
    """
    if isinstance(seed, Sequence):
        if len(seed) != count:
            allowed = f"one number, or {count}: one per image"
            raise InvalidOptionError.of("seed", list(seed), allowed)
        return [parse(Seed, one) for one in seed]
    if seed is None:
        seed = secrets.randbelow(MAX_DRAWN_SEED - count)
    elif seed + count - 1 > MAX_SEED:
        allowed = f"up to {MAX_SEED - count + 1} with n = {count}"
        raise InvalidOptionError.of("seed", seed, allowed)
    return list(range(seed, seed + count))


def _size(sizes: Sizes, wanted: str | None, nearest: bool) -> tuple[str, Grid]:
    if wanted is None:
        return next(iter(sizes.listed.items()))
    size = wanted
    if nearest and sizes.grid(wanted) is None:
        size = sizes.nearest(wanted) or wanted
    grid = sizes.grid(size)
    if grid is None:
        raise InvalidOptionError.of("size", wanted, sizes.allowed)
    return size, grid


def _params(wishes: ImageOptions, asked: ImageOptions, grid: Grid) -> ImageParams:
    """The parameters of wishes that leave nothing open but the seed and the policy."""
    if wishes.adaptive and wishes.policy not in (None, ADAPTIVE):
        allowed = f"false with policy {wishes.policy}"
        raise InvalidOptionError.of("adaptive", True, allowed)
    values = {
        name: value
        for name in ImageParams.__dataclass_fields__
        if (value := getattr(wishes, name, None)) is not None
    }
    if wishes.adaptive:
        values["policy"] = ADAPTIVE
    if asked.window is None:  # a default may be wider than a small picture
        values["window"] = min(wishes.window or grid.columns, grid.columns)
    return ImageParams(**values)
