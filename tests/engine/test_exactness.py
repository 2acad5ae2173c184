"""The engine's tokens are the reference decoder's, and stock vLLM's where the window is full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from zipar_vllm.config import ImageParams
from zipar_vllm.core.grid import Grid
from zipar_vllm.core.reference import decode_image

from .conftest import Engine, Finished

pytestmark = pytest.mark.engine

PROMPT = [1, 7, 12, 9, 2]
NEGATIVE = [1, 4, 2]

Request = tuple[int, list[int], list[int], ImageParams]
"""Arrival step, prompt, unconditional prompt, options."""


@cache
def hf_model(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def expected(
    engine: Engine, prompt: list[int], unconditional: list[int], params: ImageParams
) -> tuple[list[int], int]:
    tokens = engine.tokens
    result = decode_image(
        hf_model(engine.path),
        prompt,
        Grid(params.rows, params.columns, tokens.row_terminator is not None),
        params.window,
        adaptive=params.adaptive,
        image_tokens=(tokens.start, tokens.count),
        row_terminator_id=tokens.row_terminator,
        unconditional_ids=unconditional,
        guidance_scale=params.guidance_scale,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=params.seed,
    )
    return result.tokens, result.num_forward_passes


def assert_diverse(tokens: list[int]) -> None:
    """A model that repeats itself would let a wrong mask pass."""
    assert len(set(tokens)) >= len(tokens) // 4


def steps_alone(engine: Engine, window: int, guidance: float, **options: Any) -> int:
    """Steps of an 8 x 8 image, whose tokens and steps have to be the reference decoder's."""
    unconditional = NEGATIVE if guidance != 1.0 else []
    params = ImageParams(
        rows=8,
        columns=8,
        window=window,
        guidance_scale=guidance,
        unconditional_length=len(unconditional),
        **options,
    )
    got = engine.generate(PROMPT, unconditional, params)
    tokens, passes = expected(engine, PROMPT, unconditional, params)
    assert_diverse(tokens)
    assert got.tokens == tokens
    assert got.steps == passes
    return passes


@pytest.mark.parametrize("guidance", [1.0, 3.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("window", [1, 2, 4, 8])
def test_alone(engine: Engine, window: int, guidance: float) -> None:
    assert steps_alone(engine, window, guidance, temperature=0.0) == 8 + 7 * window


def test_sampled(engine: Engine) -> None:
    params = ImageParams(
        rows=6, columns=12, window=3, seed=11, temperature=0.8, top_k=40, top_p=0.9
    )
    got = engine.generate(PROMPT, [], params)
    assert got.tokens == expected(engine, PROMPT, [], params)[0]


def run_as_they_arrive(engine: Engine, requests: list[Request]) -> None:
    """Each request is added at its step; they are called by their place in the list."""
    for step in range(requests[-1][0] + 1):
        for index, (arrival, prompt, unconditional, params) in enumerate(requests):
            if arrival == step:
                engine.add(str(index), prompt, unconditional, params)
        engine.step()
    engine.run()


def assert_expected(
    engine: Engine, requests: list[Request], results: dict[str, Finished], skip: str = ""
) -> None:
    for index, (_, prompt, unconditional, params) in enumerate(requests):
        if str(index) in skip:
            continue
        tokens, passes = expected(engine, prompt, unconditional, params)
        assert results[str(index)].tokens == tokens, f"request {index}: {params}"
        assert results[str(index)].steps == passes


def mixed_requests() -> list[Request]:
    """Requests that differ in all they can."""
    requests = []
    shapes = [(8, 8), (6, 12), (10, 4), (8, 8), (1, 12), (10, 1), (6, 12), (8, 8)]
    for index, (rows, columns) in enumerate(shapes):
        guided = index % 2 == 1
        unconditional = [1, *range(4, 4 + index), 2] if guided else []
        params = ImageParams(
            rows=rows,
            columns=columns,
            window=min(columns, [1, 2, 4, 12][index % 4]),
            seed=index,
            temperature=0.0 if index % 3 else 0.7,
            guidance_scale=1.5 + index if guided else 1.0,
            unconditional_length=len(unconditional),
        )
        prompt = [1, *range(5, 6 + 3 * index), 2]
        requests.append((index * 3 // 2, prompt, unconditional, params))
    return requests


def test_in_a_batch_of_unlike_requests(engine: Engine) -> None:
    requests = mixed_requests()
    run_as_they_arrive(engine, requests)
    assert_expected(engine, requests, engine.outputs)


def test_prompt_longer_than_a_step(engine: Engine) -> None:
    """Two prompts of 300 and 200 tokens over a budget of 256 take two passes to prefill."""
    prompt = [1, *(5 + i % 20 for i in range(298)), 2]
    unconditional = [1, *(6 + i % 17 for i in range(198)), 2]
    params = ImageParams(
        rows=8, columns=8, window=4, temperature=0.0, guidance_scale=2.0, unconditional_length=200
    )
    got = engine.generate(prompt, unconditional, params)
    assert got.tokens == expected(engine, prompt, unconditional, params)[0]


def test_full_window_gives_stock_tokens(engines: dict[bool, Engine]) -> None:
    engine = engines[False]
    params = ImageParams(rows=8, columns=8, window=8, temperature=0.0)
    assert engine.generate(PROMPT, [], params).tokens == stock_tokens(engine.path, [PROMPT])[0]


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
