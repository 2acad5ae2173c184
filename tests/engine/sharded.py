"""Print the tokens of tensor-parallel engines as JSON: ``sharded.py JOBS RANKS``.

``JOBS`` is a pickle of ``[(model, engine arguments, images)]``; an engine of each model is started
after the other. vLLM's own executor starts each rank in a process of its own; all of them are
forked off one that has everything imported.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

from server.cli.preloading import preload_engine

if __name__ == "__main__":
    context = preload_engine()  # imports while this process does
    from vllm import LLM
    from vllm.v1.executor import multiproc_executor

    from zipar_vllm.engine.arguments import engine_arguments
    from zipar_vllm.engine.request import make_request

    multiproc_executor.get_mp_context = lambda: context
    tokens = []
    for model, arguments, images in pickle.loads(Path(sys.argv[1]).read_bytes()):
        ranks = {"tensor_parallel_size": int(sys.argv[2])}
        llm = LLM(**engine_arguments(model, **arguments, **ranks))
        prompts, sampling = map(list, zip(*map(make_request, images), strict=True))
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        tokens.append([list(output.outputs[0].token_ids) for output in outputs])
        llm.llm_engine.engine_core.shutdown()
    print(json.dumps(tokens))
