"""The same seed gives the same tokens, whoever else is in the batch and on however many ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cases import assert_diverse, make_image
from zipar_vllm.prepare import ADAPTIVE, PreparedImage

from .conftest import Engine

pytestmark = pytest.mark.engine


def image_of(terminated: bool, seed: int, window: int = 4) -> PreparedImage:
    """Under an adaptive window where the seed is odd."""
    policy = {"policy": ADAPTIVE} if seed % 2 == 1 else {}
    return make_image(
        terminated,
        prompt=[1, 5, 2],
        window=window,
        seed=seed,
        temperature=1.0,
        top_k=50,
        **policy,
    )


def test_alone_or_in_a_full_batch(engine: Engine) -> None:
    alone = engine.generate(image_of(engine.terminated, seed=3)).tokens
    for seed in range(16):
        engine.add(str(seed), image_of(engine.terminated, seed=seed, window=1 + seed % 8))
    engine.add("again", image_of(engine.terminated, seed=3))
    engine.run()
    assert engine.outputs["again"].tokens == alone
    assert engine.outputs["3"].tokens == alone


def test_another_seed_differs(engine: Engine) -> None:
    first = engine.generate(image_of(engine.terminated, seed=3)).tokens
    second = engine.generate(image_of(engine.terminated, seed=4)).tokens
    assert first != second


needs_two_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="two CPU ranks need a core each, here is one"
)


@needs_two_cores
def test_tensor_parallel_ranks_draw_the_same(engines: Callable[[bool], Engine]) -> None:
    assert_same_on_two_ranks(engines(True))


def assert_same_on_two_ranks(engine: Engine) -> None:
    """Images of fixed and adaptive windows, with drafts there and without here."""
    seeds = [3, 4, 5]
    alone = [engine.generate(image_of(engine.terminated, seed)).tokens for seed in seeds]
    for tokens in alone:
        assert_diverse(tokens)
    assert sharded_tokens(engine.path, ranks=2, seeds=seeds) == alone


def sharded_tokens(path: Path, ranks: int, seeds: list[int]) -> list[list[int]]:
    """Tokens of an engine on several CPU ranks, in processes of its own."""
    cores = sorted(os.sched_getaffinity(0))[:ranks]
    environment = {
        **os.environ,
        # vLLM's own choice needs a memory node for each rank.
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, cores)),
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    }
    script = "tests.engine.sharded"
    result = subprocess.run(
        [sys.executable, "-m", script, str(path), str(ranks), json.dumps(seeds)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])
