"""Drafts in the engine: the same tokens, fewer passes, no step too wide, nothing left behind.

Most cases are in tests/decoding, without vLLM.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.cases import NEGATIVE, expected, make_image
from zipar_vllm.decoding.pass_cost import PassCost
from zipar_vllm.engine.borrowed import ImageStats
from zipar_vllm.engine.drafts import RIPENING, DraftChooser, make_experience
from zipar_vllm.prepare import PreparedImage

from .conftest import Engine


def random_image(rng: random.Random, terminated: bool) -> PreparedImage:
    guided = rng.random() < 0.3
    columns = rng.choice([4, 7, 8])
    return make_image(
        terminated,
        rng.randint(1, 8),
        columns,
        prompt=[1, *(rng.randint(4, 30) for _ in range(rng.randint(1, 40))), 2],
        unconditional=NEGATIVE if guided else [],
        guidance_scale=2.0 if guided else 1.0,
        window=rng.randint(1, columns),
        drafts=rng.choice([0, 1, 5, 64, "auto", "auto"]),
        seed=rng.randrange(1000),
        temperature=rng.choice([0.0, 0.5, 1.0]),
        top_k=rng.choice([0, 20]),
    )


def assert_same_pictures(engine: Engine, images: dict[str, PreparedImage]) -> None:
    for name, image in images.items():
        tokens, passes = expected(engine.path, engine.vocabulary, image)
        assert engine.outputs[name].tokens == tokens, f"{name}: {image}"
        assert engine.outputs[name].steps <= passes


@pytest.fixture
def widths(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Inputs of each pass from now on."""
    widths: list[int] = []
    forward = engine.runner.forward

    def keep(batch: Any) -> Any:
        widths.append(batch.num_inputs)
        return forward(batch)

    monkeypatch.setattr(engine.runner, "forward", keep)
    return widths


@pytest.mark.engine
@pytest.mark.parametrize(
    ("spare_inputs", "burst_seconds"), [(0.0, 3600.0), (4.0, 0.0), (500.0, 3600.0)]
)
def test_any_company(
    engine: Engine,
    widths: list[int],
    seen: list[ImageStats],
    monkeypatch: pytest.MonkeyPatch,
    spare_inputs: float,
    burst_seconds: float,
) -> None:
    monkeypatch.setattr(engine.scheduler, "_has_given_cost", True)
    monkeypatch.setattr(engine.scheduler, "_pass_cost", PassCost(spare_inputs, 0.0))
    monkeypatch.setattr(engine.scheduler, "burst_seconds", burst_seconds)
    rng = random.Random(int(spare_inputs))
    images = {str(index): random_image(rng, engine.terminated) for index in range(10)}
    for name, image in images.items():
        engine.add(name, image)
        for _ in range(rng.randrange(4)):
            engine.step()
    victim = rng.choice([name for name in images if name not in engine.outputs])
    engine.abort(victim)
    del images[victim]
    engine.run()
    assert_same_pictures(engine, images)
    assert max(widths) <= 256 + 32  # the last token of a lane's prompt may be fed twice
    assert sum(stats.passes for stats in seen) <= len(widths)
    assert sum(stats.drafts for stats in seen) > sum(stats.accepted_drafts for stats in seen) >= 0


@pytest.mark.engine
def test_auto_makes_no_drafts_where_no_pass_has_room(
    engine: Engine, seen: list[ImageStats], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.runner, "_pass_cost", PassCost(0.0, 0.0))
    image = make_image(engine.terminated, window=2, drafts="auto")
    assert engine.generate(image).steps == 8 + 7 * 2
    assert sum(stats.drafts for stats in seen) == 0


@pytest.mark.engine
def test_the_runner_tells_what_a_pass_costs(
    engine: Engine, seen: list[ImageStats], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.runner._pass_cost.fixed >= 0
    monkeypatch.setattr(engine.runner, "_pass_cost", PassCost(500.0, 0.0))
    engine.generate(make_image(engine.terminated, window=2, drafts="auto"))
    assert sum(stats.drafts for stats in seen) > 0


@pytest.mark.engine
def test_drafts_take_what_a_step_has_left(small: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 inputs per step: never more, and the prompt that comes meanwhile does not wait."""
    widths = []
    forward = small.runner.forward
    monkeypatch.setattr(
        small.runner, "forward", lambda batch: widths.append(batch.num_inputs) or forward(batch)
    )
    images = {
        "a": make_image(True, 6, 6, prompt=[1, 2], drafts=64),
        "b": make_image(True, 4, 6, prompt=[1] * 40, window=2, drafts=64),
    }
    small.add("a", images["a"])
    small.step()
    small.step()
    assert widths == [2, 9]  # two inputs are reserved for each of 7 steps, as rows overlap
    small.add("b", images["b"])
    small.step()
    assert widths[-1] == 1 + 14  # no draft: two inputs are reserved for a, all else is b's prompt
    small.run()
    assert max(widths) <= 16
    assert_same_pictures(small, images)


def chooser(plain_inputs: float = 1.0, num_lanes: int = 1) -> DraftChooser:
    return DraftChooser(make_experience(), plain_inputs, num_lanes)


def see(chooser: DraftChooser, drafts: int, plain_steps: int, made: int, passes: int = 1) -> None:
    chooser.observe(drafts, passes=passes, plain_steps=plain_steps * passes, made=made * passes)


def test_the_chooser_looks_further_the_better_it_goes() -> None:
    good, bad = chooser(), chooser()
    start = good.choose(20.0)
    for _ in range(20):
        see(good, 8, plain_steps=9, made=8)
        see(bad, 8, plain_steps=1, made=8)
    assert good.choose(20.0) > start > bad.choose(20.0) == 0
    assert good.choose(500.0) >= good.choose(20.0) > good.choose(2.0)
    assert good.choose(0.0) == 0


def test_more_inputs_or_lanes_for_a_step_mean_fewer_drafts() -> None:
    few, many, guided = chooser(), chooser(), chooser(num_lanes=2)
    for _ in range(20):
        see(few, 8, plain_steps=6, made=6)
        see(many, 8, plain_steps=6, made=30)
        see(guided, 8, plain_steps=6, made=6)
    assert few.choose(10.0) > guided.choose(10.0) > many.choose(10.0)
    assert guided.choose(20.0) == few.choose(10.0)


def test_images_of_a_kind_learn_from_one_another() -> None:
    kind = make_experience()
    first = DraftChooser(kind, 1.0, 1)
    for _ in range(50):
        see(first, 8, plain_steps=1, made=8)
    assert DraftChooser(kind, 1.0, 1).choose(6.0) == 0 < chooser().choose(6.0)


@pytest.mark.parametrize("fault", [0.0, 0.1, 0.3, 0.6, 1.0])
def test_experience_finds_the_fault_whatever_passes_are_taken(fault: float) -> None:
    """From sums over passes that look differently far, how often a step is wrong."""
    rng = random.Random(0)
    experience = make_experience()
    for drafts in [1, 4, 16] * 200:
        chance = 1 - fault * drafts**-RIPENING
        plain_steps = 0
        for _ in range(3):
            right = 0
            while right < drafts and rng.random() < chance:
                right += 1
            plain_steps += 1 + right
        experience.observe(drafts, passes=3, plain_steps=plain_steps, made=0)
    assert experience.fault(1.0, 0.5) == pytest.approx(fault, abs=0.1)


@pytest.mark.parametrize("passes", [1, 16])
def test_the_chooser_gives_up_and_tries_again(passes: int) -> None:
    """Where no draft is ever right, few passes make any."""
    own, drafts = chooser(), []
    for _ in range(6000 // passes):
        drafts.append(own.choose(6.0))
        see(own, drafts[-1], plain_steps=1, made=drafts[-1], passes=passes)
    early, late = drafts[: 500 // passes], drafts[500 // passes :]
    assert 0 < sum(early) <= 0.1 * 500
    assert 0 < sum(late) <= 0.01 * 5500
