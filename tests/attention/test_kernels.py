"""Every kernel against dense float64 attention that is written straight from the rule."""

import numpy as np
import pytest
import torch

from tests.attention.lanes import TABLE_ROWS, Lanes, Shape, assert_close
from zipar_vllm.attention import cpu_attention
from zipar_vllm.attention.cpu_attention import CPUAttention
from zipar_vllm.attention.select import select_kernel
from zipar_vllm.attention.torch_attention import TorchAttention


def make_kernel(name, shape):
    if name == "torch":
        return TorchAttention(shape.heads // shape.kv_heads, shape.dtype)
    library = cpu_attention.load_library()
    if library is None:
        pytest.skip("no C++ compiler here to build the CPU kernel with")
    return CPUAttention(library)


@pytest.mark.parametrize("kernel_name", ["torch", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("head_size", "block_size"), [(32, 16), (64, 32)])
def test_random_steps(kernel_name, dtype, heads, kv_heads, head_size, block_size):
    shape = Shape(heads, kv_heads, head_size, block_size, dtype)
    kernel = make_kernel(kernel_name, shape)
    lanes = Lanes(shape, seed=heads * head_size + kv_heads)
    rows = lanes.rng.permutation(TABLE_ROWS)
    prompts = [(int(row), np.arange(lanes.rng.integers(1, 20))) for row in rows[:4]]
    assert_close(lanes.step(kernel, prompts, num_decoding=0), dtype)
    for _ in range(2):  # ready sets with gaps below and between them, beside a new prompt
        decoding = [(row, lanes.some(lanes.rng.integers(1, 13))) for row, _ in prompts[::-1]]
        opening = (int(rows[4]), np.arange(lanes.rng.integers(1, 30)))
        assert_close(lanes.step(kernel, [*decoding, opening], num_decoding=len(decoding)), dtype)


@pytest.mark.parametrize("kernel_name", ["torch", "cpu"])
def test_a_later_write_replaces_the_key(kernel_name):
    """The true token of a row end comes after its proxy."""
    shape = Shape(4, 2, 32, 16, torch.float32)
    kernel, lanes = make_kernel(kernel_name, shape), Lanes(shape, seed=0)
    for positions in ([0, 1, 2], [7, 20], [3, 7], [8, 21]):
        assert_close(lanes.step(kernel, [(5, np.array(positions))], num_decoding=1), shape.dtype)


@pytest.mark.parametrize("kernel_name", ["torch", "cpu"])
@pytest.mark.parametrize("seed", range(4))
def test_a_query_sees_orders_up_to_its_limit(kernel_name, seed):
    """Orders of all kinds, also above the limits of the very queries that are fed with them."""
    shape = Shape(4, 2, 32, 16, torch.float32)
    kernel, lanes = make_kernel(kernel_name, shape), Lanes(shape, seed)
    lanes.step(kernel, [(3, np.arange(5)), (7, np.arange(2))], 0, orders=np.zeros(7))
    for _ in range(3):
        inputs = [(row, lanes.some(lanes.rng.integers(20, 40))) for row in (7, 3)]
        count = sum(len(positions) for _, positions in inputs)
        orders, limits = lanes.rng.integers(0, 9, count), lanes.rng.integers(0, 9, count)
        # The prompt stays, so that every query sees something.
        inputs = [(row, positions[positions > 4]) for row, positions in inputs]
        kept = sum(len(positions) for _, positions in inputs)
        result = lanes.step(kernel, inputs, 2, orders=orders[:kept], limits=limits[:kept])
        assert_close(result, shape.dtype)


@pytest.mark.parametrize("kernel_name", ["torch", "cpu"])
def test_other_lanes_and_later_slots_do_not_matter(kernel_name):
    shape = Shape(4, 2, 32, 16, torch.float32)
    kernel = make_kernel(kernel_name, shape)

    def run(disturb):
        lanes = Lanes(shape, seed=3)
        lanes.step(kernel, [(0, np.array([0, 1, 2, 9]))], num_decoding=0)
        if disturb:
            lanes.step(kernel, [(0, np.array([11, 40])), (1, np.array([0, 5]))], num_decoding=0)
        torch.manual_seed(99)
        return lanes.step(kernel, [(0, np.array([4, 10]))], num_decoding=1)[0]

    torch.testing.assert_close(run(disturb=True), run(disturb=False))


@pytest.mark.parametrize("leftover", [float("nan"), float("inf"), float("-inf")])
def test_the_torch_kernel_does_not_mind_what_nobody_sees(leftover):
    """Blocks come with what their last owner left: in float16 that may be no number."""
    shape = Shape(4, 2, 32, 16, torch.float32)
    kernel, lanes = make_kernel("torch", shape), Lanes(shape, seed=5, leftover=leftover)
    for positions in (np.arange(3), np.array([3, 20, 37]), np.array([4, 21, 90])):
        inputs = [(2, positions), (6, positions[:2])]
        assert_close(lanes.step(kernel, inputs, num_decoding=2), shape.dtype)


def test_the_cpu_kernel_refuses_what_it_is_not_written_for():
    assert not cpu_attention.supports(torch.float16, 64, 32)
    assert not cpu_attention.supports(torch.float32, 40, 32)
    assert not cpu_attention.supports(torch.float32, 64, 8)
    assert not cpu_attention.supports(torch.float32, 512, 32)
    assert not cpu_attention.supports(torch.float32, 64, 512)


def test_selection():
    cpu = torch.device("cpu")
    assert isinstance(select_kernel(cpu, torch.float16, 2, 64, 32), TorchAttention)
    expected = TorchAttention if cpu_attention.load_library() is None else CPUAttention
    assert isinstance(select_kernel(cpu, torch.bfloat16, 2, 64, 32), expected)


def test_the_torch_kernel_takes_wider_slots():
    """As a GPU has them for heads of 100, should Triton be missing there."""
    shape = Shape(4, 2, 100, 16, torch.float32, width=104)
    kernel, lanes = make_kernel("torch", shape), Lanes(shape, seed=1)
    for positions in (np.arange(20), np.array([22, 40])):
        assert_close(lanes.step(kernel, [(5, positions)], num_decoding=1), shape.dtype)
