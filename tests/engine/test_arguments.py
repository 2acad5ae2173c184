"""What image decoding refuses of an engine's configuration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import OffloadConfig

from zipar_vllm.engine import arguments
from zipar_vllm.engine.vllm_api import CUDAGraphMode


def config(
    mode: Any,
    cpu_offload_gb: float = 0.0,
    offload_group_size: int = 0,
    enable_sleep_mode: bool = False,
) -> Any:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
        ),
        cache_config=SimpleNamespace(enable_prefix_caching=False),
        model_config=SimpleNamespace(enable_sleep_mode=enable_sleep_mode),
        speculative_config=None,
        kv_transfer_config=None,
        lora_config=None,
        compilation_config=SimpleNamespace(cudagraph_mode=mode),
        offload_config=OffloadConfig(
            uva={"cpu_offload_gb": cpu_offload_gb},
            prefetch={"offload_group_size": offload_group_size},
        ),
    )


def test_graphs_of_vllm_s_own_are_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dispatcher would leave attention and sampling outside, and capture none of our steps."""
    arguments.check_config(config(CUDAGraphMode.PIECEWISE))  # a CPU captures nothing
    monkeypatch.setattr(arguments, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    arguments.check_config(config(CUDAGraphMode.NONE))
    with pytest.raises(ValueError, match="cudagraph_mode: PIECEWISE, allowed is NONE"):
        arguments.check_config(config(CUDAGraphMode.PIECEWISE))


@pytest.mark.parametrize("option", ["cpu_offload_gb", "offload_group_size", "enable_sleep_mode"])
def test_what_moves_weights_to_the_host_is_refused(option: str) -> None:
    """Only vLLM's own runner would move them there, or load them again after a sleep."""
    with pytest.raises(ValueError, match=f"^{option}: image decoding does not support it"):
        arguments.check_wishes({option: 4})
    arguments.check_wishes({option: 0})
    with pytest.raises(ValueError, match=f"^{option}: image decoding does not support it"):
        arguments.check_config(config(CUDAGraphMode.NONE, **{option: 4}))
