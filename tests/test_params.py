"""Options: what is refused, and in which words."""

import math

import pytest

from zipar_vllm.engine.request import ImageArgs
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.params import MAX_SEED, ImageOptions, ImageParams, parse

GOOD = {"rows": 8, "columns": 6, "window": 4}

WHOLE = {
    "rows": (1, "1 or more"),
    "columns": (1, "1 or more"),
    "window": (None, None),
    "seed": (0, f"0 to {MAX_SEED}"),
    "unconditional_length": (0, "0 or more"),
    "top_k": (0, "0 to 1000000"),
}
NUMBERS = {
    "guidance_scale": ", 0 to 100",
    "temperature": ", 0 to 10",
    "top_p": " above 0 and up to 1",
    "min_p": ", 0 to 1",
}


def refusal(kind=ImageArgs, **options):
    with pytest.raises(InvalidOptionError) as caught:
        parse(kind, GOOD | options if kind is ImageArgs else options)
    return caught.value


def test_every_option_is_covered_here():
    others = {"policy", "drafts", "picture"}
    assert {*WHOLE, *NUMBERS, *others} == set(ImageArgs.__dataclass_fields__)


def test_a_picture():
    assert parse(ImageArgs, GOOD | {"picture": [3, 0]}).picture == (3, 0)


@pytest.mark.parametrize("value", [-1, 1.0, "1", True, None])
def test_a_picture_of_what_is_no_code(value):
    allowed = "allowed is a list, each a whole number, 0 or more"
    assert str(refusal(picture=[1, value])) == f"picture: got {value!r}, {allowed}"


@pytest.mark.parametrize("value", [0, 64, "auto"])
def test_drafts(value):
    assert parse(ImageArgs, GOOD | {"drafts": value}).drafts == value


@pytest.mark.parametrize("value", [-1, 65, 1.0, "8", "Auto", True, None])
def test_drafts_that_are_none(value):
    allowed = "a whole number, 0 to 64 or auto"
    assert str(refusal(drafts=value)) == f"drafts: got {value!r}, allowed is {allowed}"


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [1.0, "3", None, True, [2], math.nan])
def test_whole_numbers_only(name, value):
    error = refusal(**{name: value})
    limits = WHOLE[name][1]
    assert error.field == name
    words = "a whole number" + (f", {limits}" if limits else "")
    assert str(error) == f"{name}: got {value!r}, allowed is {words}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, low - 1) for name, (low, _) in WHOLE.items() if low is not None),
        ("seed", MAX_SEED + 1),
        ("top_k", 1_000_001),
    ],
)
def test_whole_numbers_in_range(name, value):
    error = refusal(**{name: value})
    assert error.field == name
    assert str(error) == f"{name}: got {value}, allowed is a whole number, {WHOLE[name][1]}"


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1", None, False, math.nan, math.inf, -math.inf, -0.5, 100.5])
def test_finite_numbers_in_range_only(name, value):
    error = refusal(**{name: value})
    assert error.field == name
    assert str(error) == f"{name}: got {value!r}, allowed is a number{NUMBERS[name]}"


@pytest.mark.parametrize("value", [0, 0.0])
def test_top_p_zero(value):
    assert str(refusal(top_p=value)).endswith("allowed is a number above 0 and up to 1")


@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"seed": MAX_SEED},
        {"guidance_scale": 0},
        {"guidance_scale": 100},
        {"temperature": 0},
        {"temperature": 10.0},
        {"top_k": 1_000_000},
        {"top_p": 1e-9},
        {"top_p": 1},
        {"rows": 1, "columns": 1},
    ],
)
def test_limits_themselves_are_allowed(options):
    parse(ImageArgs, GOOD | options)


def test_the_error_is_a_value_error_that_shows_no_more_than_it_has_to():
    assert isinstance(refusal(rows=0), ValueError)
    assert len(str(refusal(policy=["x" * 1000]))) < 200


@pytest.mark.parametrize("name", GOOD)
def test_missing_option(name):
    options = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(InvalidOptionError, match=f"^{name}: missing") as caught:
        parse(ImageArgs, options)
    assert (caught.value.field, caught.value.code) == (name, "missing")


@pytest.mark.parametrize("kind", [ImageArgs, ImageOptions])
def test_unknown_option(kind):
    error = refusal(kind, widow=1)
    assert (error.field, error.code) == ("widow", "unknown")
    assert "unknown, allowed are" in str(error)
    assert "temperature" in str(error)


@pytest.mark.parametrize("name", ["guidance_scale", "temperature", "top_k", "top_p", "min_p"])
def test_wishes_have_the_same_ranges_as_parameters(name):
    wish, parameter = refusal(ImageOptions, **{name: -1}), refusal(**{name: -1})
    assert str(wish) == str(parameter)


def test_every_parameter_can_be_wished_for_but_the_seed_which_is_each_images_own():
    assert set(ImageParams.__dataclass_fields__) - set(ImageOptions.model_fields) == {"seed"}


@pytest.mark.parametrize("value", [0, "true"])
def test_adaptive_is_true_or_false(value):
    error = refusal(ImageOptions, adaptive=value)
    assert str(error) == f"adaptive: got {value!r}, allowed is true or false"
