"""Asynchronous scheduling, as on a GPU, on a tight cache: the same pictures, and nothing is stuck.

vLLM plans a step before it knows the result of the one before; on a CPU it does not by itself.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.cases import make_image

from .conftest import Engine, start_engine
from .gpu_worker import scheduling_ahead

pytestmark = pytest.mark.engine

SHAPES = [(2, 100, 100), (8, 20, 20), (8, 12, 4), (20, 8, 3), (2, 100, 90), (8, 20, 10)]
"""Rows, columns and window."""


def test_a_hundred_images_with_aborts(small: Engine, tiny_models: dict[bool, Path]) -> None:
    """Fixed, adaptive and guided ones, whose prompts take a step or more, inheriting blocks."""
    images = {}
    for number, (rows, columns, window) in enumerate(SHAPES * 3):
        options: dict[str, object] = {"policy": "adaptive_window"} if number % 6 == 3 else {}
        if number % 5 == 2:
            options |= {"unconditional": [1], "guidance_scale": 2.0}
        prompt = [1, 2 + number, *[3] * (number % 4 * 9)]
        image = {"window": window, "temperature": 1.0, "seed": number, **options}
        images[number] = make_image(True, rows, columns, prompt=prompt, **image)  # type: ignore[arg-type]
    alone = {number: small.generate(image) for number, image in images.items()}
    with scheduling_ahead():
        engine = start_engine(
            tiny_models[True],
            num_gpu_blocks_override=18,
            max_num_batched_tokens=16,
            max_model_len=512,
        )
    assert engine.core.batch_queue_size == 2
    free = engine.free_blocks
    rng = random.Random(0)
    wanted: dict[str, int] = {}
    aborted, most_shared = set[str](), 0
    for index in range(100):
        wanted[str(index)] = rng.choice(list(images))
        engine.add(str(index), images[wanted[str(index)]])
        for _ in range(rng.randint(0, 30)):
            engine.step()
        blocks = engine.scheduler.kv_cache_manager.block_pool.blocks
        shared = sum(block.ref_cnt > 1 for block in blocks if not block.is_null)
        most_shared = max(most_shared, shared)
        unfinished = [name for name in wanted if name not in aborted | set(engine.outputs)]
        if unfinished and rng.random() < 0.3:
            victim = rng.choice(unfinished[:6])
            engine.abort(victim)
            aborted.add(victim)
    engine.run(10_000)
    assert most_shared > 5
    assert len(aborted) > 20
    assert engine.outputs == {
        name: alone[number] for name, number in wanted.items() if name not in aborted
    }
    assert engine.free_blocks == free
    assert not engine.failed
