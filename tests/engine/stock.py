"""Print stock vLLM's greedy tokens as JSON: ``stock.py MODEL PROMPTS COUNT``."""

from __future__ import annotations

import json
import sys

import torch
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

from zipar_vllm.models.registry import load_spec


def main(path: str, prompts: list[list[int]], count: int) -> None:
    vocabulary = load_spec(path).vocabulary
    llm = LLM(
        path,
        dtype="float32",
        max_model_len=1024,
        kv_cache_memory_bytes=64 << 20,
        enforce_eager=True,
        enable_prefix_caching=False,
        distributed_executor_backend="uni",
    )
    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=count,
        ignore_eos=True,
        detokenize=False,
        allowed_token_ids=vocabulary.ids(torch.arange(vocabulary.num_codes)).tolist(),
    )
    requests = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
    outputs = llm.generate(requests, sampling, use_tqdm=False)
    print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
