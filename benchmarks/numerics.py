"""How often bfloat16 lets the batch tip a token: the same seeds alone and in company.

    python -m benchmarks.numerics

Each image is drawn alone, then in a batch with 15 others under other windows. Set
``VLLM_BATCH_INVARIANT=1`` to see what vLLM's own switch does here.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import Any

from benchmarks.pictures import PROMPTS, make_params, request_of
from zipar_vllm.config import ImageParams
from zipar_vllm.engine.arguments import engine_arguments
from zipar_vllm.models.demo import DEMO_PATH
from zipar_vllm.models.registry import load_image_model

BATCH = 16
WINDOWS = (4, 8, 24)


def main() -> None:
    from vllm import LLM

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--temperature", type=float, help="over all tokens; default: the model's")
    options = parser.parse_args()
    model = load_image_model(DEMO_PATH)
    llm = LLM(**engine_arguments(DEMO_PATH), dtype=options.dtype, kv_cache_memory_bytes=1 << 30)
    requests = [
        _request(
            model,
            PROMPTS[seed % len(PROMPTS)],
            make_params(model, WINDOWS[seed % 3], seed),
            options.temperature,
        )
        for seed in range(BATCH)
    ]
    alone = [_generate(llm, [request])[0] for request in requests]
    again = [_generate(llm, [request])[0] for request in requests]
    together = _generate(llm, requests)
    invariant = os.environ.get("VLLM_BATCH_INVARIANT", "0")
    temperature = requests[0][1].temperature
    print(f"{BATCH} images, temperature {temperature}, {options.dtype}, invariant {invariant}")
    print(f"alone, twice: {_differing(alone, again)}")
    print(f"alone and in a batch: {_differing(alone, together)}")


def _request(
    model: Any, prompt: str, params: ImageParams, temperature: float | None
) -> tuple[Any, Any]:
    if temperature is not None:
        params = replace(params, temperature=temperature, top_k=0)
    return request_of(model, prompt, params)


def _generate(llm: Any, requests: list[tuple[Any, Any]]) -> list[list[int]]:
    prompts, sampling = map(list, zip(*requests, strict=True))
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def _differing(first: list[list[int]], second: list[list[int]]) -> str:
    images = sum(a != b for a, b in zip(first, second, strict=True))
    tokens = sum(
        x != y for a, b in zip(first, second, strict=True) for x, y in zip(a, b, strict=True)
    )
    return f"{images} images of {len(first)} differ, in {tokens} of {sum(map(len, first))} tokens"


if __name__ == "__main__":
    main()
