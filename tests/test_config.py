"""Image options: what is refused, in which words, and the way through ``extra_args``."""

import math
import pickle

import pytest

from zipar_vllm.config import EXTRA_ARGS_KEY, MAX_SEED, ImageParams, ImageParamsError
from zipar_vllm.core.grid import Grid

GOOD = {"rows": 8, "columns": 6, "window": 4}

WHOLE = {
    "rows": (1, "1 or more"),
    "columns": (1, "1 or more"),
    "window": (1, "1 to 6"),
    "seed": (0, f"0 to {MAX_SEED}"),
    "unconditional_length": (0, "0 or more"),
    "top_k": (0, "0 or more"),
}
NUMBERS = {"guidance_scale": "0 to 100", "temperature": "0 to 10", "top_p": "0 to 1"}
TOO_HIGH = [("window", 7), ("seed", MAX_SEED + 1)]


def refusal(**options):
    with pytest.raises(ImageParamsError) as caught:
        ImageParams(**GOOD | options)
    return caught.value


def test_every_option_is_covered_here():
    assert {*WHOLE, *NUMBERS, "adaptive"} == set(ImageParams.__slots__)


@pytest.mark.parametrize("value", [0, 1, None, "true"])
def test_adaptive_is_true_or_false(value):
    error = refusal(adaptive=value)
    assert str(error) == f"adaptive: got {value!r}, allowed is true or false"


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [1.0, "3", None, True, [2], math.nan])
def test_whole_numbers_only(name, value):
    error = refusal(**{name: value})
    allowed = WHOLE[name][1]
    assert error.field == name
    assert str(error) == f"{name}: got {value!r}, allowed is a whole number, {allowed}"


@pytest.mark.parametrize(
    ("name", "value"), [*((name, low - 1) for name, (low, _) in WHOLE.items()), *TOO_HIGH]
)
def test_whole_numbers_in_range(name, value):
    error = refusal(**{name: value})
    assert error.field == name
    assert str(error) == f"{name}: got {value}, allowed is {WHOLE[name][1]}"


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1", None, False, math.nan, math.inf, -math.inf])
def test_finite_numbers_only(name, value):
    error = refusal(**{name: value})
    assert error.field == name
    assert str(error) == f"{name}: got {value!r}, allowed is a number, {NUMBERS[name]}"


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("guidance_scale", -0.5, "-0.5"),
        ("guidance_scale", 100.5, "100.5"),
        ("temperature", -1, "-1"),
        ("temperature", 11, "11"),
        ("top_p", -0.1, "-0.1"),
        ("top_p", 1.5, "1.5"),
    ],
)
def test_numbers_in_range(name, value, got):
    error = refusal(**{name: value})
    assert error.field == name
    assert str(error) == f"{name}: got {got}, allowed is {NUMBERS[name]}"


@pytest.mark.parametrize("value", [0, 0.0])
def test_top_p_zero(value):
    assert str(refusal(top_p=value)) == "top_p: got 0, allowed is more than 0 up to 1"


@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 6},
        {"seed": MAX_SEED},
        {"guidance_scale": 0},
        {"guidance_scale": 100},
        {"temperature": 0},
        {"temperature": 10.0},
        {"top_p": 1e-9},
        {"top_p": 1},
        {"rows": 1, "columns": 1, "window": 1},
    ],
)
def test_limits_themselves_are_allowed(options):
    ImageParams(**GOOD | options)


def test_the_error_is_a_value_error():
    assert isinstance(refusal(rows=0), ValueError)


def test_lanes_and_grid():
    assert ImageParams(**GOOD).num_lanes == 1
    assert ImageParams(**GOOD, unconditional_length=3).num_lanes == 2
    assert ImageParams(**GOOD).grid(True) == Grid(8, 6, row_terminator=True)
    assert ImageParams(**GOOD).grid(False) == Grid(8, 6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "seed": MAX_SEED,
            "unconditional_length": 2,
            "guidance_scale": 3.5,
            "temperature": 0.0,
            "top_k": 100,
            "top_p": 0.9,
        },
    ],
)
def test_round_trip_through_extra_args(options):
    params = ImageParams(**GOOD, **options)
    extra = params.to_extra_args()
    assert list(extra) == [EXTRA_ARGS_KEY]
    assert ImageParams.from_extra_args(extra | {"other": 1}) == params
    assert ImageParams.from_extra_args(pickle.loads(pickle.dumps(extra))) == params


@pytest.mark.parametrize("extra", [None, {}, {"zipar": None}, {"zipar": [1]}, {"other": GOOD}])
def test_no_options_at_all(extra):
    with pytest.raises(ImageParamsError, match="needed is a table of options") as caught:
        ImageParams.from_extra_args(extra)
    assert caught.value.field == "extra_args.zipar"


@pytest.mark.parametrize("name", GOOD)
def test_missing_option(name):
    options = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(ImageParamsError, match=f"^{name}: missing$") as caught:
        ImageParams.from_extra_args({EXTRA_ARGS_KEY: options})
    assert caught.value.field == name


@pytest.mark.parametrize("name", ["widow", "", 3])
def test_unknown_option(name):
    with pytest.raises(ImageParamsError, match="unknown, allowed are") as caught:
        ImageParams.from_extra_args({EXTRA_ARGS_KEY: GOOD | {name: 1}})
    assert caught.value.field == str(name)
    assert all(known in str(caught.value) for known in ImageParams.__slots__)


def test_bad_value_in_extra_args():
    with pytest.raises(ImageParamsError) as caught:
        ImageParams.from_extra_args({EXTRA_ARGS_KEY: GOOD | {"window": 0}})
    assert caught.value.field == "window"
