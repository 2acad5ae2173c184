"""From wishes to parameters: defaults, seeds, and what the model refuses."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import FakeModel
from zipar_vllm.core.grid import Grid
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.params import MAX_SEED, ImageOptions
from zipar_vllm.prepare import ADAPTIVE, MAX_DRAWN_SEED, PreparedImage, make_seeds, prepare_images


def prepare(prompt: str = "red apple", seed: int = 5, **options: Any) -> PreparedImage:
    return prepare_images(FakeModel(), prompt, ImageOptions(**options), [seed])[0]


def test_what_is_left_open_is_the_models() -> None:
    image = prepare()
    params = image.params
    assert (image.size, image.grid) == ("64x48", Grid(6, 8, True))
    assert (params.window, params.policy, params.seed) == (4, "fixed_window", 5)
    assert (params.guidance_scale, params.temperature) == (2.0, 0.5)
    assert (params.top_k, params.top_p) == (5, 1.0)
    assert (image.prompts.conditional, image.prompts.unconditional) == ([1, 0, 1, 2], [1, 2])


def test_wishes_win_over_defaults_also_where_they_are_zero() -> None:
    params = prepare(temperature=0.0, top_k=0, guidance_scale=0.0, window=1).params
    assert (params.temperature, params.top_k, params.guidance_scale) == (0.0, 0, 0.0)
    assert params.window == 1


def test_guidance_of_one_has_no_unconditional_lane() -> None:
    assert prepare(guidance_scale=1.0, negative_prompt="blue").prompts.unconditional == []
    assert prepare(negative_prompt="blue").prompts.unconditional == [1, 0, 2]


def test_a_default_window_fits_into_a_small_picture() -> None:
    model = FakeModel()
    model.spec.defaults.window = 7
    (image,) = prepare_images(model, "x", ImageOptions(size="32x32"), [1])
    assert image.params.window == 4


def test_the_nearest_size_is_taken_where_that_is_wanted() -> None:
    for wanted, size in {"1024x768": "64x48", "1024x1024": "32x32", "32x32": "32x32"}.items():
        wishes = ImageOptions(size=wanted)
        (image,) = prepare_images(FakeModel(), "x", wishes, [1], nearest_size=True)
        assert image.size == size
    with pytest.raises(InvalidOptionError, match=r"^size: got 'large', allowed is auto"):
        prepare_images(FakeModel(), "x", ImageOptions(size="large"), [1], nearest_size=True)


def test_images_differ_in_their_seeds_alone() -> None:
    first, second = prepare_images(FakeModel(), "x", ImageOptions(), [3, 9])
    assert (first.params.seed, second.params.seed) == (3, 9)
    assert first.prompts is second.prompts


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ({}, "fixed_window"),
        ({"adaptive": False}, "fixed_window"),
        ({"adaptive": True}, ADAPTIVE),
        ({"policy": ADAPTIVE}, ADAPTIVE),
        ({"adaptive": True, "policy": ADAPTIVE}, ADAPTIVE),
    ],
)
def test_adaptive_is_short_for_a_policy(options: dict[str, Any], policy: str) -> None:
    assert prepare(**options).params.policy == policy


@pytest.mark.parametrize(
    ("options", "field", "allowed"),
    [
        ({"prompt": " \n"}, "prompt", "not blank"),
        ({"prompt": "y " * 60}, "prompt", "got 62 tokens, allowed is up to 50 tokens"),
        ({"negative_prompt": "y " * 60}, "negative_prompt", "up to 50 tokens"),
        ({"size": "33x33"}, "size", "auto or 64x48 or 32x32"),
        ({"window": 0}, "window", "1 to 8"),
        ({"window": 9}, "window", "1 to 8"),
        ({"window": 5, "size": "32x32"}, "window", "1 to 4"),
        ({"policy": "sideways"}, "policy", "fixed_window or adaptive_window"),
        ({"policy": "fixed_window", "adaptive": True}, "adaptive", "false with policy"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(
    options: dict[str, Any], field: str, allowed: str
) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        prepare(**options)
    assert caught.value.field == field
    assert allowed in str(caught.value)


def test_seeds_count_up_or_are_given_or_drawn() -> None:
    assert make_seeds(10, 3) == [10, 11, 12]
    assert make_seeds([5, 1], 2) == [5, 1]
    assert make_seeds(MAX_SEED, 1) == [MAX_SEED]
    first, second = make_seeds(None, 2), make_seeds(None, 2)
    assert first[1] == first[0] + 1 <= MAX_DRAWN_SEED
    assert first != second


@pytest.mark.parametrize(
    ("seed", "count", "allowed"),
    [
        (MAX_SEED, 2, f"up to {MAX_SEED - 1} with n = 2"),
        ([1], 2, "one number, or 2: one per image"),
    ],
)
def test_bad_seeds(seed: Any, count: int, allowed: str) -> None:
    with pytest.raises(InvalidOptionError, match="seed: got") as caught:
        make_seeds(seed, count)
    assert allowed in str(caught.value)
