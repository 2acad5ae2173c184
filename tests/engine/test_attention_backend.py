"""What vLLM's layers ask of the backend on a GPU, though none is here: its KV cache, float8."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec

from tests.attention.lanes import Lanes, Shape, assert_close
from tests.interpreted import has_gpu
from zipar_vllm.attention.triton_attention import TritonAttention
from zipar_vllm.engine import arguments, attention_backend
from zipar_vllm.engine.attention_backend import (
    StepAttention,
    ZipARAttentionBackend,
    ZipARAttentionImpl,
)

GPU = SimpleNamespace(is_cpu=lambda: False)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_backend, "current_platform", GPU)
    monkeypatch.setattr(arguments, "current_platform", GPU)


def spec(head_size: int, dtype: torch.dtype) -> Any:
    return FullAttentionSpec(block_size=64, num_kv_heads=2, head_size=head_size, dtype=dtype)


@pytest.mark.parametrize(
    ("head_size", "dtype", "width"),
    [
        (128, torch.bfloat16, 128),
        (100, torch.bfloat16, 104),
        (100, torch.float32, 100),
        (100, torch.float8_e4m3fn, 112),
    ],
)
@pytest.mark.usefixtures("on_gpu")
def test_slots_are_as_wide_as_copies_need(head_size: int, dtype: torch.dtype, width: int) -> None:
    page = ZipARAttentionBackend.customize_spec(spec(head_size, dtype)).page_size_bytes
    assert page == 64 * 2 * 2 * width * dtype.itemsize


def test_slots_are_no_wider_on_a_cpu() -> None:
    plain = spec(100, torch.bfloat16)
    assert ZipARAttentionBackend.customize_spec(plain) is plain


@pytest.mark.usefixtures("on_gpu")
def test_blocks_hold_the_keys_that_a_gpu_reads_at_a_time() -> None:
    assert arguments.required_arguments("model")["block_size"] == 64


def test_float8_is_refused_on_a_cpu() -> None:
    with pytest.raises(NotImplementedError, match="a KV cache in fp8"):
        ZipARAttentionImpl(4, 64, 0.1, kv_cache_dtype="fp8")


@pytest.mark.usefixtures("on_gpu")
def test_other_float8_is_refused_on_a_gpu() -> None:
    assert ZipARAttentionBackend.supports_kv_cache_dtype("fp8")
    assert not ZipARAttentionBackend.supports_kv_cache_dtype("fp8_e5m2")
    with pytest.raises(NotImplementedError, match="a KV cache in fp8_e5m2"):
        ZipARAttentionImpl(4, 64, 0.1, kv_cache_dtype="fp8_e5m2")


@pytest.mark.usefixtures("on_gpu")
def test_a_layer_scales_its_float8_keys_and_values() -> None:
    """As vLLM has it: the cache in bytes, the scales on the layer."""
    shape = Shape(4, 2, 64, 16, torch.float16)
    device = torch.device("cuda" if has_gpu() else "cpu")
    lanes = Lanes(shape, 1, device, kv_scales=(0.05, 0.02))
    kernel = TritonAttention(2, 64, shape.dtype, device)
    layer = SimpleNamespace(_k_scale_float=0.05, _v_scale_float=0.02)
    impl = ZipARAttentionImpl(4, 64, shape.scale, 2, kv_cache_dtype="fp8")
    fed = lanes.feed([(3, np.arange(20))], 0)
    metadata = StepAttention(kernel, kernel.prepare(fed.inputs))
    output = torch.full_like(fed.query, float("nan"))
    cache = lanes.cache.view(torch.uint8)
    impl.forward(layer, fed.query, fed.key, fed.value, cache, metadata, output)
    assert_close((output.cpu(), fed.expected), shape.dtype)
