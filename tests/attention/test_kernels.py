"""Every kernel against dense float64 attention that is written straight from the rule."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from zipar_vllm.attention import cpu_attention
from zipar_vllm.attention.cpu_attention import CPUAttention
from zipar_vllm.attention.interface import AttentionInputs
from zipar_vllm.attention.select import select_kernel
from zipar_vllm.attention.torch_attention import TorchAttention
from zipar_vllm.core.visibility import UNWRITTEN

TABLE_ROWS = 9
BLOCKS_PER_LANE = 6
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


@dataclass
class Shape:
    heads: int
    kv_heads: int
    head_size: int
    block_size: int
    dtype: torch.dtype

    @property
    def scale(self):
        return 0.8 * self.head_size**-0.5


def make_kernel(name, shape):
    if name == "torch":
        return TorchAttention(shape.heads // shape.kv_heads, shape.dtype)
    library = cpu_attention.load_library()
    if library is None:
        pytest.skip("no C++ compiler here to build the CPU kernel with")
    return CPUAttention(library)


class Lanes:
    """Sequences with paged caches, and a plain copy of every key and value that was written."""

    def __init__(self, shape, seed):
        self.shape = shape
        self.rng = np.random.default_rng(seed)
        self.slots = BLOCKS_PER_LANE * shape.block_size
        blocks = TABLE_ROWS * BLOCKS_PER_LANE + 3
        order = self.rng.permutation(blocks)[: TABLE_ROWS * BLOCKS_PER_LANE]
        self.block_table = torch.from_numpy(order.reshape(TABLE_ROWS, BLOCKS_PER_LANE).copy())
        self.orders = torch.full((TABLE_ROWS, self.slots), UNWRITTEN, dtype=torch.int32)
        self.steps = 0
        torch.manual_seed(seed)
        size = (blocks, shape.kv_heads, shape.block_size, 2 * shape.head_size)
        self.cache = (torch.randn(size) * 300).to(shape.dtype)  # leftovers of other sequences
        self.known = {}

    def step(self, kernel, inputs, num_decoding, orders=None, limits=None):
        """Feed ``[(lane, positions)]``; returns outputs and what they should be.

        Orders and limits are the number of the step if they are not given, one per input.
        """
        shape = self.shape
        counts = [len(positions) for _, positions in inputs]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.repeat([row for row, _ in inputs], counts)
        positions = torch.from_numpy(np.concatenate([p for _, p in inputs]).astype(np.int64))
        self.steps += 1
        orders = np.full(len(positions), self.steps) if orders is None else orders
        limits = orders if limits is None else limits
        orders, limits = (torch.from_numpy(part.astype(np.int32)) for part in (orders, limits))
        self.orders[torch.from_numpy(rows), positions] = orders
        block = self.block_table[torch.from_numpy(rows), positions // shape.block_size]
        step = AttentionInputs(
            positions=positions,
            limits=limits,
            slot_mapping=block * shape.block_size + positions % shape.block_size,
            lanes=np.array([row for row, _ in inputs], dtype=np.int64),
            lane_starts=starts,
            last_positions=np.array([max(p) for _, p in inputs], dtype=np.int64),
            num_decoding=num_decoding,
            orders=self.orders,
            block_table=self.block_table,
            block_size=shape.block_size,
        )
        n, size = len(positions), shape.head_size
        qkv = torch.randn(n, (shape.heads + 2 * shape.kv_heads) * size).to(shape.dtype)
        query, key, value = (
            part.view(n, -1, size)
            for part in qkv.split(
                [shape.heads * size, shape.kv_heads * size, shape.kv_heads * size], dim=1
            )
        )
        for index, (row, position) in enumerate(zip(rows, positions.tolist(), strict=True)):
            known = key[index].double(), value[index].double(), int(orders[index])
            self.known[int(row), position] = known
        output = torch.full((n, shape.heads, size), float("nan"), dtype=shape.dtype)
        kernel.run(query, key, value, self.cache, kernel.prepare(step), shape.scale, output)
        return output, self._expected(query, rows, positions.tolist(), limits.tolist())

    def _expected(self, query, rows, positions, limits):
        """One query at a time over the keys it may see."""
        group = self.shape.heads // self.shape.kv_heads
        lanes = {}
        for row in set(rows.tolist()):
            own = [
                (at, self.known[row, at])
                for at in sorted(p for lane, p in self.known if lane == row)
            ]
            keys, values = (torch.stack([kv[i] for _, kv in own]) for i in (0, 1))
            lanes[row] = (
                np.array([(at, kv[2]) for at, kv in own]),
                keys.repeat_interleave(group, dim=1),
                values.repeat_interleave(group, dim=1),
            )
        outputs = []
        for q, row, position, limit in zip(
            query.double(), rows.tolist(), positions, limits, strict=True
        ):
            at, keys, values = lanes[row]
            seen = torch.from_numpy((at[:, 0] <= position) & (at[:, 1] <= limit))
            scores = torch.einsum("hd,khd->hk", q, keys[seen]) * self.shape.scale
            outputs.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values[seen]))
        return torch.stack(outputs)

    def some(self, count):
        return np.sort(self.rng.choice(self.slots, count, replace=False))


def assert_close(result, dtype):
    output, expected = result
    torch.testing.assert_close(
        output.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


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
