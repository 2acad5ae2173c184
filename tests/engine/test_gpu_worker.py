"""vLLM's GPU worker starts, draws and stops over CPU tensors; nothing of CUDA is tested here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.cases import NEGATIVE, make_image
from zipar_vllm.prepare import ADAPTIVE

from .conftest import Engine
from .gpu_worker import start_gpu_worker

pytestmark = pytest.mark.engine


def test_the_gpu_worker_draws_what_the_cpu_worker_draws(engines: Callable[[bool], Engine]) -> None:
    """A fixed window beside an adaptive one; a hundred more in ``test_scheduling_ahead.py``."""
    engine = engines(True)
    on_gpu = start_gpu_worker(engine.path, max_num_seqs=4)
    executor = on_gpu.core.model_executor
    # Four images of two lanes each: from the token budget down, as long as all of them take part.
    profiled = executor.driver_worker.worker.profiled
    assert profiled == [(inputs, 8) for inputs in (256, 128, 64, 32, 16, 8)]
    options: dict[str, Any] = {"unconditional": NEGATIVE, "guidance_scale": 2.0, "temperature": 1.0}
    images = {
        "fixed": make_image(True, window=4, seed=3, **options),
        "adaptive": make_image(True, policy=ADAPTIVE, seed=3, **options),
    }
    for name, image in images.items():
        on_gpu.add(name, image)
    on_gpu.run()
    assert on_gpu.outputs == {name: engine.generate(image) for name, image in images.items()}
    executor.shutdown()
    assert not on_gpu.runner.kv_caches
