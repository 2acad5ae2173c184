"""Have torch, vLLM and this project take the processor for one with AVX2 and no more.

Python imports this before anything else where the folder is on ``PYTHONPATH``; the rest of what it
takes is in ``benchmarks/machine.py``.
"""

import torch

from zipar_vllm import cpu

for name in ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported"):
    setattr(torch.cpu, name, lambda: False)
_flags = frozenset(flag for flag in cpu.flags() if not flag.startswith(("avx512", "amx")))
cpu.flags = lambda: _flags
