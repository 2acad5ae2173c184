"""The front door for Python, over the embedded model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.cases import expected
from zipar_vllm.engine import pixel_memory
from zipar_vllm.errors import ImageTooLargeError, InvalidOptionError
from zipar_vllm.llm import ImageLLM
from zipar_vllm.models import DEMO_PATH

pytestmark = pytest.mark.engine

GREEDY = {"temperature": 0.0, "window": 4, "progress": False}


# Until the end of the session: an engine that goes takes what all in the process share with it.
@pytest.fixture(scope="session")
def llm() -> ImageLLM:
    environment, affinity = dict(os.environ), os.sched_getaffinity(0)
    llm = ImageLLM(dtype="float32", enforce_eager=True, max_model_len=620)
    llm.start()
    assert dict(os.environ) == environment
    assert os.sched_getaffinity(0) == affinity
    return llm


def test_results_come_in_the_order_of_the_prompts(llm: ImageLLM) -> None:
    apple, pizza = llm.generate(["red apple", "pizza"], seed=7, window=4, progress=False)
    assert (apple.prompt, pizza.prompt) == ("red apple", "pizza")
    assert (apple.params.seed, pizza.params.seed) == (7, 8)
    assert apple.steps == pizza.steps == 24 + 23 * 4
    assert apple.image.size == (192, 192)
    assert len(apple.tokens) == 24 * 25
    red, green, _ = np.asarray(apple.image)[96, 96].astype(int)
    assert red > 150 > green + 50  # an apple's middle
    assert apple.logprobs is None
    (again,) = llm.generate("pizza", seed=8, window=4, progress=False)
    assert again.image.tobytes() == pizza.image.tobytes() != apple.image.tobytes()


def test_logprobs_are_of_the_drawn_tokens(llm: ImageLLM) -> None:
    (image,) = llm.generate("house", logprobs=True, **GREEDY)
    assert image.logprobs is not None
    assert image.logprobs.shape == (24, 24)
    assert image.logprobs.dtype == np.float32
    # The likeliest of n tokens has at least probability 1 / n.
    assert (image.logprobs <= 0).all()
    assert (image.logprobs >= -np.log(llm.model.spec.vocabulary.num_codes)).all()


def test_a_score_is_what_raster_order_would_have_drawn_with(llm: ImageLLM) -> None:
    """In raster order a picture's log-probabilities are its score; under a window they are not."""
    images = llm.prepare(["house", "pizza"], window=24, seed=3)
    drawn = llm.decode(images, logprobs=True)
    scores = llm.score(images, [one.codes for one in drawn])
    for one, score in zip(drawn, scores, strict=True):
        assert one.logprobs is not None
        np.testing.assert_allclose(score, one.logprobs, atol=1e-4)
    (narrow,) = llm.prepare(["house"], window=2, seed=3)
    (one,) = llm.decode([narrow], logprobs=True)
    (score,) = llm.score([narrow], [one.codes])
    assert one.logprobs is not None
    assert np.abs(score - one.logprobs).max() > 0.1


def test_a_seed_is_drawn_and_told(llm: ImageLLM) -> None:
    first, second = (llm.prepare(["red apple"])[0].params.seed for _ in range(2))
    assert first != second
    seeds = [image.params.seed for image in llm.prepare(["a", "b"], seed=[5, 3])]
    assert seeds == [5, 3]


def test_a_bar_tells_of_rows(llm: ImageLLM, capfd: pytest.CaptureFixture[str]) -> None:
    llm.generate("red apple", window=4, seed=1)
    assert "24/24" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "field"),
    [({"window": 25}, "window"), ({"windows": 4}, "windows"), ({"size": "1x1"}, "size")],
)
def test_bad_options_are_named(llm: ImageLLM, options: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"^{field}: "):
        llm.generate("red apple", progress=False, **options)


def test_what_does_not_fit_is_refused(llm: ImageLLM) -> None:
    (image,) = llm.prepare(["red apple"], guidance_scale=2.0, negative_prompt="blurred " * 8)
    with pytest.raises(ImageTooLargeError, match="max_model_len is 620"):
        llm.decode([image])
    assert not llm.llm.llm_engine.has_unfinished_requests()


def test_an_unknown_folder_is_no_model(tmp_path: object) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        ImageLLM(str(tmp_path))


def test_a_gpus_worker_is_told_where_pixels_are_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_memory, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    spare = {"zipar_spare_inputs": 5}
    llm = ImageLLM(pixel_device=torch.device("cpu"), additional_config=spare)
    assert llm._arguments["additional_config"] == spare | {"zipar_pixel_device": "cpu"}


@pytest.fixture(scope="module")
def captured() -> Iterator[ImageLLM]:
    """On a GPU, compiled and with its steps captured; there, an engine is a process of its own."""
    with ImageLLM(dtype="float32", max_model_len=620, gpu_memory_utilization=0.4) as llm:
        yield llm


@pytest.mark.gpu
def test_raster_order_on_a_gpu(llm: ImageLLM, captured: ImageLLM) -> None:
    """Greedy, in float32: the reference decoder's tokens on a CPU, eager and captured."""
    (image,) = llm.prepare(["pizza"], window=24, temperature=0.0)
    tokens, steps = expected(DEMO_PATH, llm.model.spec.vocabulary, image)
    assert len(set(tokens)) > 100
    for engine in (llm, captured):
        (drawn,) = engine.decode([image])
        assert drawn.tokens == tokens
        assert drawn.steps == steps


@pytest.mark.gpu
def test_a_seed_repeated_on_a_gpu(captured: ImageLLM) -> None:
    first, again, other = (
        captured.generate("pizza", seed=seed, window=4, progress=False)[0] for seed in (8, 8, 9)
    )
    assert first.steps == 24 + 23 * 4
    assert first.tokens == again.tokens != other.tokens
    assert first.image.tobytes() == again.image.tobytes()
