"""Asynchronous scheduling, as on a GPU, on a tight cache: the same pictures, and nothing is stuck.

vLLM plans a step before it knows the result of the one before; on a CPU it does not by itself.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.cases import make_image
from zipar_vllm.prepare import ADAPTIVE, PreparedImage

from .conftest import Engine
from .gpu_worker import start_gpu_worker

pytestmark = pytest.mark.engine

SHAPES = [(2, 100, 100), (8, 20, 20), (8, 12, 4), (20, 8, 3), (2, 100, 90), (8, 20, 10)]
"""Rows, columns and window."""


def random_images(chance: random.Random) -> list[PreparedImage]:
    """Fixed and adaptive, guided and not, greedy and not; their prompts take a step or more."""
    shapes = SHAPES * 3
    for _ in range(18):  # over in some steps
        columns = chance.randint(1, 5)
        shapes.append((chance.randint(1, 4), columns, chance.randint(1, columns)))
    images = []
    for seed, (rows, columns, window) in enumerate(shapes):
        options: dict[str, Any] = {
            "window": window,
            "temperature": chance.choice([0.0, 1.0]),
            "top_k": chance.choice([0, 20]),
            "seed": seed,
        }
        if chance.random() < 0.25:
            options["policy"] = ADAPTIVE
        if chance.random() < 0.3:
            options |= {"unconditional": [1], "guidance_scale": 2.0}
        prompt = [1, 2 + seed % 20, *[3] * (seed % 4 * 9)]
        images.append(make_image(True, rows, columns, prompt=prompt, **options))
    return images


def test_a_hundred_images_with_aborts(small: Engine, tiny_models: dict[bool, Path]) -> None:
    """Ahead by the GPU's worker, inheriting blocks; alone, step by step, by the CPU's."""
    chance = random.Random(0)
    images = random_images(chance)
    alone = [small.generate(image) for image in images]
    engine = start_gpu_worker(
        tiny_models[True],
        num_gpu_blocks_override=18,
        max_num_batched_tokens=16,
        max_model_len=512,
    )
    assert engine.core.batch_queue_size == 2
    free = engine.free_blocks
    wanted: dict[str, int] = {}
    aborted, most_shared = set[str](), 0
    for index in range(100):
        wanted[str(index)] = chance.randrange(len(images))
        engine.add(str(index), images[wanted[str(index)]])
        for _ in range(chance.randint(0, 30)):
            engine.step()
        blocks = engine.scheduler.kv_cache_manager.block_pool.blocks
        shared = sum(block.ref_cnt > 1 for block in blocks if not block.is_null)
        most_shared = max(most_shared, shared)
        unfinished = [name for name in wanted if name not in aborted | set(engine.outputs)]
        if unfinished and chance.random() < 0.3:
            victim = chance.choice(unfinished[:6])
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
