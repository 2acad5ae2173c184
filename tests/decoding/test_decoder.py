"""Whole steps over a Hugging Face model: always the reference decoder's tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cases import (
    NEGATIVE,
    PROMPT,
    assert_diverse,
    expected,
    hf_model,
    make_image,
    mixed_images,
)
from zipar_vllm.attention.torch_attention import TorchAttention
from zipar_vllm.core.visibility import visibility_mask
from zipar_vllm.prepare import ADAPTIVE, PreparedImage

from .room import Room

pytestmark = pytest.mark.slow

GREEDY: dict[str, Any] = {"temperature": 0.0}
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 11}
MIN_P: dict[str, Any] = {"temperature": 1.0, "min_p": 0.05, "seed": 12}


def assert_decoded(room: Room, path: Path, images: dict[str, PreparedImage]) -> None:
    for name, image in images.items():
        tokens, passes = expected(path, room.vocabulary, image)
        assert room.results[name].tokens == tokens, f"{name}: {image}"
        assert room.results[name].steps == passes


@pytest.mark.parametrize("policy", ["fixed_window", ADAPTIVE])
@pytest.mark.parametrize("options", [GREEDY, SAMPLED, MIN_P], ids=["greedy", "sampled", "min-p"])
@pytest.mark.parametrize("guidance", [1.0, 3.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("window", [1, 2, 4, 8])
def test_alone(
    room: Room,
    path: Path,
    terminated: bool,
    window: int,
    guidance: float,
    options: dict[str, Any],
    policy: str,
) -> None:
    image = make_image(
        terminated,
        unconditional=NEGATIVE if guidance != 1 else [],
        window=window,
        guidance_scale=guidance,
        policy=policy,
        **options,
    )
    got = room.generate(image)
    tokens, passes = expected(path, room.vocabulary, image)
    assert_diverse(tokens)
    assert got.tokens == tokens
    assert got.steps == passes
    if policy == "fixed_window":
        assert passes == 8 + 7 * window


def test_positions_of_the_models_own(path: Path, terminated: bool) -> None:
    """The model counts pictures from 40 on; their keys follow the prompt's all the same."""
    length = len(PROMPT)
    room = Room(path, positions=lambda grid, prompt: np.r_[:prompt, 40 : 40 + grid.num_positions])
    image = make_image(terminated, window=3, guidance_scale=2.0, unconditional=[1, 4, 4, 4, 2])

    def counting_from_40(position_ids: torch.Tensor, **inputs: Any) -> Any:
        shifted = torch.where(position_ids < length, position_ids, position_ids + 40 - length)
        return hf_model(path)(position_ids=shifted, **inputs)

    tokens, _ = expected(path, room.vocabulary, image, model=counting_from_40)
    assert room.generate(image).tokens == tokens
    assert tokens != expected(path, room.vocabulary, image)[0]


@pytest.mark.parametrize("kernel", ["torch", "selected"])
@pytest.mark.parametrize("adaptive", [False, True], ids=["fixed", "some-adaptive"])
def test_in_a_batch_of_unlike_images(
    path: Path, terminated: bool, adaptive: bool, kernel: str
) -> None:
    """They arrive one by one, among images that decode already."""
    heads_per_kv_head = 2
    own = TorchAttention(heads_per_kv_head, torch.float32) if kernel == "torch" else None
    room = Room(path, kernel=own)
    images = mixed_images(terminated, adaptive)
    for step in range(images[-1][0] + 1):
        for index, (arrival, image) in enumerate(images):
            if arrival == step:
                room.add(str(index), image)
        room.step()
    room.run()
    assert_decoded(room, path, {str(index): image for index, (_, image) in enumerate(images)})


@pytest.mark.parametrize("budget", [11, 16, 64])
def test_prompts_in_chunks(path: Path, terminated: bool, budget: int) -> None:
    """Prompts of 30 and 20 tokens take several passes, beside an image that decodes already."""
    room = Room(path, budget=budget)
    image = make_image(
        terminated,
        prompt=[1, *(5 + i % 20 for i in range(28)), 2],
        unconditional=[1, *(6 + i % 17 for i in range(18)), 2],
        window=4,
        guidance_scale=2.0,
    )
    other = make_image(terminated, window=8)
    room.add("other", other)
    room.step()
    room.add("chunked", image)
    room.run()
    assert_decoded(room, path, {"chunked": image, "other": other})


def test_the_widest_window_is_a_greedy_loop(room: Room, path: Path, terminated: bool) -> None:
    """Plain Hugging Face decoding, the terminators put in, gives the same tokens."""
    model, ids = hf_model(path), list(PROMPT)
    codes = range(room.vocabulary.first_id, room.vocabulary.first_id + room.vocabulary.num_codes)
    image = make_image(terminated)
    with torch.no_grad():
        for index in range(image.grid.num_positions):
            if index % image.grid.stride == image.grid.columns:
                ids.append(room.vocabulary.row_terminator or 0)
                continue
            logits = model(torch.tensor([ids])).logits[0, -1]
            ids.append(max(codes, key=lambda code: float(logits[code])))
    assert room.generate(image).tokens == ids[len(PROMPT) :]


def test_rows_are_released_in_raster_order(room: Room, terminated: bool) -> None:
    image = make_image(terminated, window=2)
    room.generate(image)
    assert room.released["alone"] == [image.grid.stride * row for row in range(1, 9)]


def test_a_seed_gives_the_same_tokens_in_any_company(room: Room, terminated: bool) -> None:
    def image(seed: int, window: int = 4) -> PreparedImage:
        return make_image(terminated, window=window, seed=seed, temperature=1.0, top_k=50)

    alone = room.generate(image(3)).tokens
    for seed in range(15):
        room.add(str(seed), image(seed, window=1 + seed % 8))
    room.add("again", image(3))
    room.run()
    assert room.results["again"].tokens == alone
    assert room.results["3"].tokens == alone
    assert room.results["4"].tokens != alone


@pytest.mark.parametrize("window", [2, 8])
@torch.no_grad()
def test_logprobs_are_those_of_one_pass_under_the_mask(
    rooms: Callable[[bool], Room], model_path: Callable[[bool], Path], window: int
) -> None:
    """Sampled with cuts, beside an image that wants none; terminators are certain."""
    room = rooms(True)
    image = make_image(True, window=window, temperature=0.7, top_k=5, seed=3)
    room.add("other", make_image(True, window=4, policy=ADAPTIVE))
    got = room.generate(image, logprobs=True)
    assert room.results.pop("other").scores == []
    visible = visibility_mask(image.grid, window, len(PROMPT))
    bias = torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))
    ids = torch.tensor([[*PROMPT, *got.tokens]])
    logits = hf_model(model_path(True))(ids, attention_mask=bias[None, None]).logits[0]
    logits = room.vocabulary.select(logits[len(PROMPT) - 1 : -1])
    codes = room.vocabulary.codes(ids[0, len(PROMPT) :])
    for index, (score, code) in enumerate(zip(got.scores, codes.tolist(), strict=True)):
        if index % image.grid.stride == image.grid.columns:
            assert score == [0, 1]
            continue
        logprobs = logits[index].log_softmax(-1)
        assert score[0] == pytest.approx(float(logprobs[code]), abs=1e-4)
        assert score[1] == int((logprobs > logprobs[code]).sum()) + 1


@st.composite
def random_images(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Arguments of :func:`make_image`, for a handful of images."""
    images = []
    for _ in range(draw(st.integers(1, 5))):
        columns = draw(st.integers(1, 7))
        guided = draw(st.booleans())
        images.append(
            {
                "rows": draw(st.integers(1, 5)),
                "columns": columns,
                "prompt": [1, *draw(st.lists(st.integers(4, 30), max_size=12)), 2],
                "unconditional": [1, *draw(st.lists(st.integers(4, 30), max_size=12)), 2]
                if guided
                else [],
                "window": draw(st.integers(1, columns)),
                "policy": draw(st.sampled_from(["fixed_window", ADAPTIVE])),
                "seed": draw(st.integers(0, 2**63 - 1)),
                "guidance_scale": draw(st.sampled_from([0.0, 1.5, 4.0])) if guided else 1.0,
                "temperature": draw(st.sampled_from([0.0, 0.7, 1.0])),
                "top_k": draw(st.sampled_from([0, 1, 20])),
                "top_p": draw(st.sampled_from([0.5, 1.0])),
                "min_p": draw(st.sampled_from([0.0, 0.1, 1.0])),
            }
        )
    return images


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cases=random_images(), chaos=st.integers(0, 1000))
def test_any_batch_with_arrivals_and_aborts(
    room: Room, path: Path, terminated: bool, cases: list[dict[str, Any]], chaos: int
) -> None:
    rng = random.Random(chaos)
    room.results.clear()
    images = {str(index): make_image(terminated, **case) for index, case in enumerate(cases)}
    for name, image in images.items():
        room.add(name, image)
        for _ in range(rng.randrange(4)):
            if room.busy:
                room.step()
    running = [name for name in images if name in room.running]
    if running and rng.random() < 0.5:
        victim = rng.choice(running)
        room.abort(victim)
        del images[victim]
    room.run()
    assert_decoded(room, path, images)
