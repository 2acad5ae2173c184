"""Which kernel serves on a GPU; no GPU is asked."""

import pytest
import torch

from zipar_vllm.attention import select, triton_attention
from zipar_vllm.attention.select import select_kernel
from zipar_vllm.attention.torch_attention import TorchAttention
from zipar_vllm.attention.triton_attention import TritonAttention

CUDA = torch.device("cuda")


class Properties:
    multi_processor_count = 132


@pytest.fixture(autouse=True)
def h100(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("head_size", [64, 100, 256])
def test_triton_serves_a_gpu(dtype, head_size):
    assert isinstance(select_kernel(CUDA, dtype, 4, head_size, 64), TritonAttention)


def test_torch_serves_where_triton_is_missing(monkeypatch):
    monkeypatch.setattr(select, "find_spec", lambda name: None)
    assert isinstance(select_kernel(CUDA, torch.bfloat16, 4, 128, 64), TorchAttention)


def test_torch_serves_older_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert isinstance(select_kernel(CUDA, torch.float16, 4, 128, 64), TorchAttention)


def test_what_the_kernel_is_not_written_for():
    assert triton_attention.supports(torch.bfloat16, 8, 128, 64)
    assert not triton_attention.supports(torch.float64, 8, 128, 64)
    assert not triton_attention.supports(torch.bfloat16, 8, 512, 64)
    assert not triton_attention.supports(torch.bfloat16, 8, 128, 24)
    assert not triton_attention.supports(torch.bfloat16, 200, 128, 64)
