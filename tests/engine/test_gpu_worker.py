"""vLLM's GPU worker starts, draws and stops over CPU tensors; nothing of CUDA is tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from .conftest import Engine
from .gpu_worker import ABORTED, images

pytestmark = pytest.mark.engine


def test_the_gpu_worker_draws_what_the_cpu_worker_draws(engines: Callable[[bool], Engine]) -> None:
    engine = engines(True)
    command = [sys.executable, "-m", "tests.engine.gpu_worker", str(engine.path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout.splitlines()[-1])
    # Four images of two lanes each: from the token budget down, as long as all of them take part.
    assert report["profiled"] == [[inputs, 8] for inputs in (256, 128, 64, 32, 16, 8)]
    for number, image in enumerate(images(engine.terminated)):
        engine.add(str(number), image)
    engine.run()
    # There, each step is planned before the last one's outcome is known; here, none is.
    drawn, names = report["drawn"], map(str, range(len(images(engine.terminated))))
    expected = {name: [own.tokens, own.steps] for name in names for own in [engine.outputs[name]]}
    assert drawn.items() <= expected.items()
    missing = expected.keys() - drawn.keys()
    assert len(missing) > len(ABORTED) // 2
    assert missing <= set(ABORTED)
