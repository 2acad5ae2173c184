"""What image decoding refuses of an engine's configuration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from zipar_vllm.engine import arguments
from zipar_vllm.engine.vllm_api import CUDAGraphMode


def config(mode: Any) -> Any:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=False),
        speculative_config=None,
        kv_transfer_config=None,
        lora_config=None,
        compilation_config=SimpleNamespace(cudagraph_mode=mode),
    )


def test_graphs_of_vllm_s_own_are_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dispatcher would leave attention and sampling outside, and capture none of our steps."""
    arguments.check_config(config(CUDAGraphMode.PIECEWISE))  # a CPU captures nothing
    monkeypatch.setattr(arguments, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    arguments.check_config(config(CUDAGraphMode.NONE))
    with pytest.raises(ValueError, match="cudagraph_mode: PIECEWISE, allowed is NONE"):
        arguments.check_config(config(CUDAGraphMode.PIECEWISE))
