"""The engine's tokens are the reference decoder's, and stock vLLM's where the window is full.

A few cases: what vLLM adds to a step. Most of them are in tests/decoding, without vLLM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cases import NEGATIVE, PROMPT, assert_diverse, expected, make_image, mixed_images
from zipar_vllm.prepare import PreparedImage

from .conftest import Engine, Finished

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("guidance", [1.0, 3.0], ids=["unguided", "guided"])
def test_alone(engine: Engine, guidance: float) -> None:
    image = make_image(
        engine.terminated,
        unconditional=NEGATIVE if guidance != 1 else [],
        window=4,
        guidance_scale=guidance,
    )
    got = engine.generate(image)
    tokens, passes = expected(engine.path, engine.vocabulary, image)
    assert_diverse(tokens)
    assert got.tokens == tokens
    assert got.steps == passes == 8 + 7 * 4


def run_as_they_arrive(engine: Engine, images: list[tuple[int, PreparedImage]]) -> None:
    """Each image is added at its step; they are called by their place in the list."""
    for step in range(images[-1][0] + 1):
        for index, (arrival, image) in enumerate(images):
            if arrival == step:
                engine.add(str(index), image)
        engine.step()
    engine.run()


def assert_expected(
    engine: Engine,
    images: list[tuple[int, PreparedImage]],
    results: dict[str, Finished],
    skip: str = "",
) -> None:
    for index, (_, image) in enumerate(images):
        if str(index) in skip:
            continue
        tokens, passes = expected(engine.path, engine.vocabulary, image)
        assert results[str(index)].tokens == tokens, f"request {index}: {image}"
        assert results[str(index)].steps == passes


def test_in_a_batch_of_unlike_requests(engine: Engine) -> None:
    images = mixed_images(engine.terminated)
    run_as_they_arrive(engine, images)
    assert_expected(engine, images, engine.outputs)


def test_prompt_longer_than_a_step(engine: Engine) -> None:
    """Two prompts of 300 and 200 tokens over a budget of 256 take two passes to prefill."""
    image = make_image(
        engine.terminated,
        prompt=[1, *(5 + i % 20 for i in range(298)), 2],
        unconditional=[1, *(6 + i % 17 for i in range(198)), 2],
        window=4,
        guidance_scale=2.0,
    )
    assert engine.generate(image).tokens == expected(engine.path, engine.vocabulary, image)[0]


def test_logprobs_of_the_tokens_come_with_them(engine: Engine) -> None:
    """As any vLLM client asks for them, with an image in the batch that wants none."""
    image = make_image(engine.terminated, window=2, temperature=1.0, top_k=20)
    engine.add("plain", make_image(engine.terminated, window=4))
    engine.add("scored", image, logprobs=True)
    engine.run()
    assert engine.logprobs["plain"] is None
    scored = engine.logprobs["scored"]
    tokens = engine.outputs["scored"].tokens
    assert [next(iter(position)) for position in scored] == tokens
    for index, position in enumerate(scored):
        (score,) = position.values()
        is_terminator = index % image.grid.stride == image.grid.columns
        assert (score.logprob == 0) == is_terminator
        assert 1 <= score.rank <= (1 if is_terminator else 20)


def test_full_window_gives_stock_tokens(engines: Callable[[bool], Engine]) -> None:
    engine = engines(False)
    image = make_image(engine.terminated)
    assert engine.generate(image).tokens == stock_tokens(engine.path, [PROMPT])[0]


def stock_tokens(path: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of stock vLLM, restricted to image tokens, in a process of its own."""
    script = Path(__file__).with_name("stock.py")
    result = subprocess.run(
        [sys.executable, str(script), str(path), json.dumps(prompts), "64"],
        env={
            **os.environ,
            "VLLM_PLUGINS": "",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])
