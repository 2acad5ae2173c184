"""Drafts over a Hugging Face model: the same picture, whatever happens around it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cases import NEGATIVE, expected, make_image
from tests.tiny import make_tiny_model
from zipar_vllm.decoding.policy import make_policy
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.prepare import ADAPTIVE, PreparedImage

from .room import Room

pytestmark = pytest.mark.slow

GREEDY: dict[str, Any] = {"temperature": 0.0}
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 11}
MIN_P: dict[str, Any] = {"temperature": 1.0, "min_p": 0.05, "seed": 12}


def assert_same_picture(room: Room, path: Path, images: dict[str, PreparedImage]) -> None:
    """The reference decoder's tokens, which knows nothing of drafts, and no more passes."""
    for name, image in images.items():
        tokens, passes = expected(path, room.vocabulary, image)
        assert room.results[name].tokens == tokens, f"{name}: {image}"
        assert room.results[name].steps <= passes


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """Models whose tokens depend less on one another, so that drafts are right every other time."""

    @cache
    def make(terminated: bool) -> Path:
        path = tmp_path_factory.mktemp("calm")
        make_tiny_model(
            path, row_terminator=terminated, grids={"64x64": (8, 8)}, seed=1, initializer_range=0.05
        )
        return path

    return make


@pytest.fixture(scope="module")
def rooms(model_path: Callable[[bool], Path]) -> Callable[[bool], Room]:
    return cache(lambda terminated: Room(model_path(terminated), budget=128))


@pytest.mark.parametrize("drafts", [0, 1, 5])
@pytest.mark.parametrize("window", [3, 8])
def test_every_token_is_counted_once(
    rooms: Callable[[bool], Room], terminated: bool, window: int, drafts: int
) -> None:
    """A draft that is right behind a wrong one too, which is drawn anew."""
    room = rooms(terminated)
    image = make_image(terminated, window=window, drafts=drafts, **SAMPLED)
    before = room.num_sampled
    room.generate(image)
    assert room.num_sampled - before == image.grid.num_sampled


@pytest.mark.parametrize("options", [GREEDY, SAMPLED, MIN_P], ids=["greedy", "sampled", "min-p"])
@pytest.mark.parametrize("guidance", [1.0, 3.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("window", [1, 3, 8])
def test_alone(
    room: Room, path: Path, terminated: bool, window: int, guidance: float, options: dict[str, Any]
) -> None:
    image = make_image(
        terminated,
        unconditional=NEGATIVE if guidance != 1 else [],
        window=window,
        guidance_scale=guidance,
        drafts=6,
        **options,
    )
    room.results["alone"] = room.generate(image)
    assert_same_picture(room, path, {"alone": image})
    assert window < 8 or room.results["alone"].steps < 8 + 7 * window


def test_logprobs_are_those_without_drafts(room: Room, terminated: bool) -> None:
    options: dict[str, Any] = {"window": 3, "temperature": 0.7, "seed": 3}
    plain = room.generate(make_image(terminated, **options), logprobs=True)
    drafted = room.generate(make_image(terminated, drafts=5, **options), logprobs=True)
    assert drafted.tokens == plain.tokens
    for one, other in zip(drafted.scores, plain.scores, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("budget", [12, 17, 40])
def test_prompts_in_chunks_and_drafts_in_what_is_left(
    path: Path, terminated: bool, budget: int
) -> None:
    room = Room(path, budget=budget)
    image = make_image(
        terminated,
        prompt=[1, *(5 + i % 20 for i in range(28)), 2],
        unconditional=[1, *(6 + i % 17 for i in range(18)), 2],
        window=4,
        guidance_scale=2.0,
        drafts=64,
    )
    other = make_image(terminated, window=8, drafts=9)
    room.add("other", other)
    room.step()
    room.add("chunked", image)
    room.run()
    assert_same_picture(room, path, {"chunked": image, "other": other})


def test_they_are_refused_where_steps_depend_on_draws(terminated: bool) -> None:
    image = make_image(terminated, policy=ADAPTIVE, drafts="auto")
    with pytest.raises(InvalidOptionError, match="drafts: got 'auto', allowed is 0 with policy"):
        make_policy(image.grid, image.params)


random_prompts = st.builds(
    lambda ids, count: [1, *ids * count, 2],
    st.lists(st.integers(4, 30), min_size=1, max_size=5),
    st.integers(0, 40),
)
"""Long ones as often as short ones."""


@st.composite
def random_images(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Arguments of :func:`make_image`, for a handful of images."""
    images = []
    for _ in range(draw(st.integers(2, 6))):
        columns = draw(st.integers(1, 7))
        guided = draw(st.booleans())
        drafts = draw(st.sampled_from([0, 1, 2, 5, 16, 64, "auto", "auto"]))
        plain = drafts == 0 and draw(st.booleans())
        images.append(
            {
                "rows": draw(st.integers(1, 5)),
                "columns": columns,
                "prompt": draw(random_prompts),
                "unconditional": draw(random_prompts) if guided else [],
                "window": draw(st.integers(1, columns)),
                "policy": ADAPTIVE if plain else "fixed_window",
                "drafts": drafts,
                "seed": draw(st.integers(0, 2**63 - 1)),
                "guidance_scale": draw(st.sampled_from([0.0, 1.5, 4.0])) if guided else 1.0,
                "temperature": draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])),
                "top_k": draw(st.sampled_from([0, 1, 20])),
                "top_p": draw(st.sampled_from([0.5, 1.0])),
                "min_p": draw(st.sampled_from([0.0, 0.1, 1.0])),
            }
        )
    return images


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cases=random_images(), chaos=st.integers(0, 1000))
def test_any_batch_with_arrivals_and_aborts(
    rooms: Callable[[bool], Room],
    path: Path,
    terminated: bool,
    cases: list[dict[str, Any]],
    chaos: int,
) -> None:
    """Some 300 images; of "auto", every pass has another number. Many prompts come in chunks."""
    room, rng = rooms(terminated), random.Random(chaos)
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
    assert_same_picture(room, path, images)
