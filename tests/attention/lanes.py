"""Lanes with paged caches, to run any kernel on, and what should come out in float64."""

from dataclasses import dataclass

import numpy as np
import torch

from zipar_vllm.attention.interface import AttentionInputs
from zipar_vllm.core.visibility import UNWRITTEN

TABLE_ROWS = 9
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
FP8 = torch.float8_e4m3fn


@dataclass
class Shape:
    heads: int
    kv_heads: int
    head_size: int
    block_size: int
    dtype: torch.dtype
    blocks_per_lane: int = 6
    width: int = 0
    """Of a slot's key; the head's size if 0."""

    @property
    def scale(self):
        return 0.8 * self.head_size**-0.5


@dataclass
class Fed:
    """A step's arguments for a kernel, and what should come out: ``[inputs, heads, head_size]``."""

    inputs: AttentionInputs
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    expected: torch.Tensor


class Lanes:
    """Sequences with paged caches, and a plain copy of every key and value that was written.

    ``leftover``: what other sequences left in the cache; by default numbers of all sizes.
    ``kv_scales``: the cache is float8, and what its keys and values are multiplied by.
    """

    def __init__(self, shape, seed, device="cpu", leftover=None, kv_scales=None):
        self.shape = shape
        self.rng = np.random.default_rng(seed)
        self.device = device
        self.kv_scales = kv_scales
        self.slots = shape.blocks_per_lane * shape.block_size
        used = TABLE_ROWS * shape.blocks_per_lane
        order = self.rng.permutation(used + 3)[:used].reshape(TABLE_ROWS, -1)
        self.block_table = torch.from_numpy(order.copy()).to(device)
        self.orders = torch.full((TABLE_ROWS, self.slots), UNWRITTEN, dtype=torch.int32)
        self.orders = self.orders.to(device)
        self.steps = 0
        torch.manual_seed(seed)
        width = shape.width or shape.head_size
        size = (used + 3, shape.kv_heads, shape.block_size, 2 * width)
        cache = torch.randn(size) * 300 if leftover is None else torch.full(size, leftover)
        self.cache = cache.to(shape.dtype if kv_scales is None else FP8).to(device)
        self.known = {}

    def step(self, kernel, inputs, num_decoding, orders=None, limits=None):
        """Feed ``[(lane, positions)]``; returns outputs and what they should be."""
        fed = self.feed(inputs, num_decoding, orders, limits)
        output = torch.full_like(fed.query, float("nan"))
        self.run(kernel, fed, kernel.prepare(fed.inputs), output)
        return output.cpu(), fed.expected

    def run(self, kernel, fed, metadata, output):
        scales = () if self.kv_scales is None else self.kv_scales
        parts = fed.query, fed.key, fed.value
        kernel.run(*parts, self.cache, metadata, self.shape.scale, output, *scales)

    def feed(self, inputs, num_decoding, orders=None, limits=None):
        """Lay out a step of ``[(lane, positions)]`` and write its orders.

        Orders and limits are the number of the step if they are not given, one per input.
        """
        shape, device = self.shape, self.device
        counts = [len(positions) for _, positions in inputs]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.repeat([row for row, _ in inputs], counts)
        positions = torch.from_numpy(np.concatenate([p for _, p in inputs]).astype(np.int64))
        self.steps += 1
        orders = np.full(len(positions), self.steps) if orders is None else orders
        limits = orders if limits is None else limits
        orders, limits = (torch.from_numpy(part.astype(np.int32)) for part in (orders, limits))
        on_device = positions.to(device)
        self.orders[torch.from_numpy(rows).to(device), on_device] = orders.to(device)
        block = self.block_table[torch.from_numpy(rows).to(device), on_device // shape.block_size]
        step = AttentionInputs(
            positions=on_device,
            limits=limits.to(device),
            slot_mapping=block * shape.block_size + on_device % shape.block_size,
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
            for part in qkv.to(device).split(
                [shape.heads * size, shape.kv_heads * size, shape.kv_heads * size], dim=1
            )
        )
        stored = self._stored(key.cpu(), 0), self._stored(value.cpu(), 1)
        for index, (row, position) in enumerate(zip(rows, positions.tolist(), strict=True)):
            known = stored[0][index], stored[1][index], int(orders[index])
            self.known[int(row), position] = known
        expected = self._expected(query.cpu(), rows, positions.tolist(), limits.tolist())
        return Fed(step, query, key, value, expected)

    def _stored(self, numbers, which):
        if self.kv_scales is None:
            return numbers.double()
        scale = self.kv_scales[which]
        return (numbers.float() / scale).clamp(-448, 448).to(FP8).double() * scale

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
