"""How often bfloat16 lets the batch tip a token: the same seeds alone and in company.

    python -m benchmarks.numerics

Each image is drawn alone, then in a batch with 15 others under other windows. Set
``VLLM_BATCH_INVARIANT=1`` to see what vLLM's own switch does here.
"""

from __future__ import annotations

import argparse
import os

from benchmarks.pictures import PROMPTS
from zipar_vllm import ImageLLM

BATCH = 16
WINDOWS = (4, 8, 24)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--temperature", type=float, help="over all tokens; default: the model's")
    options = parser.parse_args()
    wishes = {}
    if options.temperature is not None:
        wishes = {"temperature": options.temperature, "top_k": 0}
    with ImageLLM(dtype=options.dtype, kv_cache_memory_bytes=1 << 30) as llm:
        images = [
            llm.prepare(
                [PROMPTS[seed % len(PROMPTS)]], seed=seed, window=WINDOWS[seed % 3], **wishes
            )[0]
            for seed in range(BATCH)
        ]
        alone, again = ([llm.decode([i])[0].tokens for i in images] for _ in range(2))
        together = [decoded.tokens for decoded in llm.decode(images)]
    invariant = os.environ.get("VLLM_BATCH_INVARIANT", "0")
    temperature = images[0].params.temperature
    print(f"{BATCH} images, temperature {temperature}, {options.dtype}, invariant {invariant}")
    print(f"alone, twice: {_differing(alone, again)}")
    print(f"alone and in a batch: {_differing(alone, together)}")


def _differing(first: list[list[int]], second: list[list[int]]) -> str:
    images = sum(a != b for a, b in zip(first, second, strict=True))
    tokens = sum(
        x != y for a, b in zip(first, second, strict=True) for x, y in zip(a, b, strict=True)
    )
    return f"{images} images of {len(first)} differ, in {tokens} of {sum(map(len, first))} tokens"


if __name__ == "__main__":
    main()
