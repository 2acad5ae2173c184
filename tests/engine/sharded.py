"""Print a tensor-parallel engine's tokens as JSON: ``sharded.py MODEL RANKS SEEDS``.

Images of fixed windows look ahead, which must not change a token on any rank.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from vllm import LLM

from tests.engine.test_seeds import image_of
from zipar_vllm.engine.arguments import engine_arguments
from zipar_vllm.engine.request import make_request
from zipar_vllm.models.registry import load_spec


def main(path: str, ranks: int, seeds: list[int]) -> None:
    terminated = load_spec(path).vocabulary.is_terminated
    llm = LLM(
        **engine_arguments(
            path,
            tensor_parallel_size=ranks,
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=16,
            kv_cache_memory_bytes=64 << 20,
            enforce_eager=True,
        )
    )
    images = [image_of(terminated, seed) for seed in seeds]
    for index, image in enumerate(images):
        if image.params.policy == "fixed_window":
            images[index] = replace(image, params=replace(image.params, drafts=5))
    requests = [make_request(image) for image in images]
    prompts, sampling = map(list, zip(*requests, strict=True))
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
