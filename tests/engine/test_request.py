"""An image through a vLLM request and back, and what other clients of vLLM may get wrong."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
from vllm import SamplingParams

from tests.cases import make_image
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.engine.request import EXTRA_ARGS_KEY, make_job, make_request, read_job
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.params import MAX_SEED

VOCABULARY = Vocabulary(32, 100, row_terminator=3)
PLAIN = make_image(True, 6, 8, prompt=[1, 2, 3], window=4)
GUIDED = make_image(
    True,
    6,
    8,
    prompt=[1, 2, 3],
    unconditional=[4, 5],
    seed=MAX_SEED,
    guidance_scale=3.5,
    top_k=100,
    top_p=0.9,
    policy="adaptive_window",
)


@pytest.mark.parametrize("image", [PLAIN, GUIDED], ids=["plain", "guided"])
def test_round_trip(image: Any) -> None:
    prompt, sampling = make_request(image)
    sampling = pickle.loads(pickle.dumps(sampling))
    job = read_job(len(prompt["prompt_token_ids"]), sampling, VOCABULARY)
    assert job == make_job(image) == pickle.loads(pickle.dumps(job))
    assert job == ImageJob(image.grid, image.params, job.lane_prompts)
    assert job.lane_prompts == ((3,) if image is PLAIN else (3, 2))


def test_both_lanes_travel_as_one_prompt() -> None:
    prompt, sampling = make_request(GUIDED)
    assert prompt["prompt_token_ids"] == [1, 2, 3, 4, 5]
    assert sampling.max_tokens == 6 * 9


def test_a_finished_picture_travels_along() -> None:
    image = replace(PLAIN, picture=tuple(range(48)))
    _, sampling = make_request(image, logprobs=True)
    job = read(pickle.loads(pickle.dumps(sampling)))
    assert job == replace(make_job(image), logprobs=True)
    assert job.picture == tuple(range(48))
    assert job.policy.num_steps == 7


@pytest.mark.parametrize(
    ("picture", "drafts", "message"),
    [
        (range(47), 0, "picture: got 47 codes, allowed is 48"),
        ([100] * 48, 0, "picture: got 100, allowed is codes of 0 to 99"),
        ([-1] * 48, 0, "picture: got -1, allowed is a list, each a whole number, 0 or more"),
        ([1] * 48, 4, "drafts: got 4, allowed is 0 with a picture"),
    ],
)
def test_a_picture_that_cannot_be_scored(picture: Any, drafts: int, message: str) -> None:
    params = replace(PLAIN.params, drafts=drafts)
    _, sampling = make_request(replace(PLAIN, picture=tuple(picture), params=params))
    with pytest.raises(InvalidOptionError, match=message):
        read(sampling)


def read(sampling: SamplingParams | None, prompt_length: int = 3) -> ImageJob:
    return read_job(prompt_length, sampling, VOCABULARY)


@pytest.mark.parametrize("extra", [None, {}, {"zipar": None}, {"zipar": [1]}, {"other": {}}])
def test_no_options_at_all(extra: Any) -> None:
    with pytest.raises(InvalidOptionError, match="needed is a table of options") as caught:
        read(SamplingParams(extra_args=extra))
    assert caught.value.field == "extra_args.zipar"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window", 0),
        ("window", 9),
        ("unconditional_length", 3),
        ("policy", "sideways"),
        ("temperature", "hot"),
        ("rows", 5),  # max_tokens does not fit
    ],
)
def test_bad_options_are_refused_by_name(field: str, value: Any) -> None:
    _, sampling = make_request(PLAIN)
    sampling.extra_args[EXTRA_ARGS_KEY][field] = value
    with pytest.raises(InvalidOptionError, match="allowed is") as caught:
        read(sampling)
    assert caught.value.field == ("max_tokens" if field == "rows" else field)


def test_several_images_are_several_requests() -> None:
    _, sampling = make_request(PLAIN)
    sampling.n = 2
    with pytest.raises(InvalidOptionError, match="n: got 2"):
        read(sampling)


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_only_the_tokens_own_logprobs_may_be_asked_for(field: str) -> None:
    _, sampling = make_request(PLAIN, logprobs=True)
    assert read(sampling).logprobs
    setattr(sampling, field, 3)
    with pytest.raises(InvalidOptionError, match=f"^{field}: got 3"):
        read(sampling)


def test_lanes_and_blocks() -> None:
    job = make_job(GUIDED)
    assert (job.num_lanes, job.prompt_length, job.num_tokens) == (2, 5, 5 + 54)
    assert job.lane_blocks(16) == (4, 4)  # 57 and 56 slots
    assert job.num_blocks(56) == 2 + 1
    assert job.max_inputs == 2 * job.policy.max_inputs


def test_other_options_are_other_policies() -> None:
    image = replace(PLAIN, params=replace(PLAIN.params, window=2))
    assert make_job(image).policy is not make_job(PLAIN).policy
    assert make_job(PLAIN).policy is make_job(PLAIN).policy
