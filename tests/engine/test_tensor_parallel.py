"""Two tensor-parallel ranks draw what one draws: the embedded model's shape and every family."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.cases import assert_diverse
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import PreparedImage, prepare_images

from .conftest import FAMILIES, Engine
from .test_seeds import image_of

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        len(os.sched_getaffinity(0)) < 2, reason="two CPU ranks need a core each, here is one"
    ),
]

ARGUMENTS = {
    "dtype": "float32",
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,
    "kv_cache_memory_bytes": 64 << 20,
    "enforce_eager": True,
}
TINY = "tiny"


def images_of(name: str, engine: Engine) -> list[PreparedImage]:
    """Sampled pictures of a fixed and of an adaptive window, guided where the model would."""
    if name == TINY:
        return [image_of(engine.terminated, seed) for seed in (4, 3, 5)]
    model = load_image_model(engine.path)
    prompt = "207" if name == "llamagen" else "a red apple"
    wishes: list[dict[str, Any]] = [{"window": 4}, {"window": 3, "adaptive": True}]
    if name == "llamagen-text":  # 32 x 32 tokens
        wishes = [{"window": 1}]
    return [prepare_images(model, prompt, ImageOptions(**one), [7])[0] for one in wishes]


@pytest.fixture(scope="module")
def on_two_ranks(
    engines: Callable[[bool], Engine],
    family_engines: Callable[[str], Engine],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[list[int]]]:
    """Tokens of each model's pictures, drawn with drafts where the window is fixed."""
    running = {TINY: engines(True), **{name: family_engines(name) for name in FAMILIES}}
    jobs = []
    for name, engine in running.items():
        images = [
            replace(image, params=replace(image.params, drafts=5))
            if image.params.policy == "fixed_window"
            else image
            for image in images_of(name, engine)
        ]
        longest = FAMILIES[name][1].get("max_model_len", 1024) if name in FAMILIES else 1024
        jobs.append((str(engine.path), {**ARGUMENTS, "max_model_len": longest}, images))
    file = tmp_path_factory.mktemp("sharded") / "jobs"
    file.write_bytes(pickle.dumps(jobs))
    cores = sorted(os.sched_getaffinity(0))[:2]
    environment = {
        **os.environ,
        # The scheduler stays in the script's process.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # vLLM's own choice needs a memory node for each rank.
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, cores)),
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "TORCHDYNAMO_DISABLE": "1",  # compiling takes each rank seconds
    }
    result = subprocess.run(
        [sys.executable, "-m", "tests.engine.sharded", str(file), str(len(cores))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return dict(zip(running, json.loads(result.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", [TINY, *FAMILIES])
def test_two_ranks_draw_the_same(
    name: str,
    on_two_ranks: dict[str, list[list[int]]],
    engines: Callable[[bool], Engine],
    family_engines: Callable[[str], Engine],
) -> None:
    engine = engines(True) if name == TINY else family_engines(name)
    alone = [engine.generate(image).tokens for image in images_of(name, engine)]
    for tokens in alone:
        assert_diverse(tokens)
    assert on_two_ranks[name] == alone
