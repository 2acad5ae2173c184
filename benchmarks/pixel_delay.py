"""Whether slow pixels delay tokens: time a step, with drawing as it is and made slow.

python -m benchmarks.pixel_delay

Images are decoded together, and each is rendered three times on the way; in every second run that
takes half a second more, as a large pixel decoder on a busy device would. The engine's steps should
not notice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import torch

from benchmarks.machine import machine_name
from benchmarks.report import RESULTS, command_line
from server.options import ServerOptions
from server.prepare import PreparedRequest, parse_request
from server.service import ImageService
from server.streaming import rows_of_partials
from zipar_vllm.engine.arguments import engine_arguments
from zipar_vllm.engine.client import ImageClient
from zipar_vllm.models import DEMO_PATH
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.prepare import PreparedImage

SLOW_SECONDS = 0.5
PARTIAL_IMAGES = 3
PARTS = ("prepare", "forward", "sample")


class SlowModel:
    """An image model whose drawing takes ``delay`` seconds more."""

    def __init__(self, model: Any, delay: float) -> None:
        self._model = model
        self.delay = delay

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        time.sleep(self.delay)
        return self._model.decode(codes)


async def measure(engine: Any, service: ImageService, request: PreparedRequest) -> float:
    """Milliseconds per step while the images are decoded together and partial ones rendered."""
    await engine.collective_rpc("step_times")

    async def one(image: PreparedImage) -> None:
        partial_rows = rows_of_partials(PARTIAL_IMAGES, image.grid.rows)
        async for _ in service.stream(image, request, service.standing(image), partial_rows):
            pass

    await asyncio.gather(*map(one, request.images))
    times = (await engine.collective_rpc("step_times"))[0]
    return float(round(1e3 * sum(times[name] for name in PARTS) / times["steps"], 3))


async def run(options: argparse.Namespace) -> dict[str, Any]:
    from vllm import AsyncEngineArgs, AsyncLLMEngine

    model = SlowModel(load_image_model(DEMO_PATH), 0.0)
    engine = AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(**engine_arguments(DEMO_PATH), kv_cache_memory_bytes=256 << 20)
    )
    service = ImageService(ImageClient(engine, model.spec), model, ServerOptions())
    body = {"prompt": "house", "seed": 1, "n": options.images}
    request = service.prepare(parse_request(body))
    command = command_line("benchmarks.pixel_delay")
    result: dict[str, Any] = {"machine": machine_name(), "command": command}
    try:
        await measure(engine, service, request)  # warm-up
        for repeat in range(options.repeats):
            for name, delay in (("fast", 0.0), ("slow", SLOW_SECONDS)):
                model.delay = delay
                got = await measure(engine, service, request)
                result.setdefault(f"step_ms_{name}", []).append(got)
                print(repeat, name, got, flush=True)
    finally:
        service.close()
        engine.shutdown()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    result = asyncio.run(run(options))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "pixel_delay.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
