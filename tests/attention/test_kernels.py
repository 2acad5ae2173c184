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

TABLE_ROWS = 9
BLOCKS_A_LANE = 6
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
        self.slots = BLOCKS_A_LANE * shape.block_size
        blocks = TABLE_ROWS * BLOCKS_A_LANE + 3
        order = self.rng.permutation(blocks)[: TABLE_ROWS * BLOCKS_A_LANE]
        self.block_table = torch.from_numpy(order.reshape(TABLE_ROWS, BLOCKS_A_LANE).copy())
        self.written = torch.zeros(TABLE_ROWS, self.slots, dtype=torch.bool)
        torch.manual_seed(seed)
        size = (blocks, shape.kv_heads, shape.block_size, 2 * shape.head_size)
        self.cache = (torch.randn(size) * 300).to(shape.dtype)  # leftovers of other sequences
        self.known = {}

    def step(self, kernel, inputs, num_decoding):
        """Feed ``[(row, positions)]``; returns outputs and what they should be."""
        shape = self.shape
        counts = [len(positions) for _, positions in inputs]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.repeat([row for row, _ in inputs], counts)
        positions = torch.from_numpy(np.concatenate([p for _, p in inputs]).astype(np.int64))
        self.written[torch.from_numpy(rows), positions] = True
        block = self.block_table[torch.from_numpy(rows), positions // shape.block_size]
        step = AttentionInputs(
            positions=positions,
            slot_mapping=block * shape.block_size + positions % shape.block_size,
            lanes=np.array([row for row, _ in inputs], dtype=np.int64),
            lane_starts=starts,
            last_positions=np.array([max(p) for _, p in inputs], dtype=np.int64),
            num_decoding=num_decoding,
            written=self.written,
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
            self.known[int(row), position] = key[index].double(), value[index].double()
        output = torch.full((n, shape.heads, size), float("nan"), dtype=shape.dtype)
        kernel.run(query, key, value, self.cache, kernel.prepare(step), shape.scale, output)
        return output, self._expected(query, rows, positions.tolist())

    def _expected(self, query, rows, positions):
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
                np.array([at for at, _ in own]),
                keys.repeat_interleave(group, dim=1),
                values.repeat_interleave(group, dim=1),
            )
        outputs = []
        for q, row, limit in zip(query.double(), rows.tolist(), positions, strict=True):
            at, keys, values = lanes[row]
            seen = int((at <= limit).sum())
            scores = torch.einsum("hd,khd->hk", q, keys[:seen]) * self.shape.scale
            outputs.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values[:seen]))
        return torch.stack(outputs)

    def some(self, count):
        return np.sort(self.rng.choice(self.slots, count, replace=False))


def check(result, dtype):
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
    check(lanes.step(kernel, prompts, num_decoding=0), dtype)
    for _ in range(2):  # ready sets with gaps below and between them, beside a new prompt
        decoding = [(row, lanes.some(lanes.rng.integers(1, 13))) for row, _ in prompts[::-1]]
        opening = (int(rows[4]), np.arange(lanes.rng.integers(1, 30)))
        check(lanes.step(kernel, [*decoding, opening], num_decoding=len(decoding)), dtype)


@pytest.mark.parametrize("kernel_name", ["torch", "cpu"])
def test_a_later_write_replaces_the_key(kernel_name):
    """The true token of a row end comes after its proxy."""
    shape = Shape(4, 2, 32, 16, torch.float32)
    kernel, lanes = make_kernel(kernel_name, shape), Lanes(shape, seed=0)
    for positions in ([0, 1, 2], [7, 20], [3, 7], [8, 21]):
        check(lanes.step(kernel, [(5, np.array(positions))], num_decoding=1), shape.dtype)


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
