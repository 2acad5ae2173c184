"""Have torch and vLLM take this processor for one without AVX-512; see benchmarks/instructions.py.

Python imports this before anything else where the folder is on ``PYTHONPATH``.
"""

import torch

for name in ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported"):
    setattr(torch.cpu, name, lambda: False)
