"""The Triton kernel against dense float64 attention, and in whole steps against the torch kernel.

Run under Triton's interpreter, or on the GPU where there is one; what only a compiler can tell is
in ``tests/benchmarks/test_gpu.py``.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attention.lanes import TABLE_ROWS, Lanes, Shape, assert_close
from tests.cases import NEGATIVE, assert_diverse, make_image
from tests.decoding.conftest import GRIDS
from tests.decoding.room import Room
from tests.interpreted import has_gpu
from tests.tiny import make_tiny_model
from zipar_vllm.attention import triton_kernels
from zipar_vllm.attention.torch_attention import TorchAttention
from zipar_vllm.attention.triton_attention import TritonAttention
from zipar_vllm.prepare import ADAPTIVE

pytestmark = pytest.mark.slow

DEVICE = torch.device("cuda" if has_gpu() else "cpu")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make_kernel(shape, part_keys=64):
    group = shape.heads // shape.kv_heads
    return TritonAttention(group, shape.head_size, shape.dtype, DEVICE, part_keys)


@settings(max_examples=15, deadline=None)
@given(
    group=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    head_size=st.sampled_from([64, 80, 100, 128, 256]),
    block_size=st.sampled_from([16, 32, 48, 64, 128]),
    part_keys=st.sampled_from([64, 128, 512]),
    dtype=st.sampled_from(DTYPES),
    counts=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    prompt=st.integers(1, 70),
    wide=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_step(
    group, kv_heads, head_size, block_size, part_keys, dtype, counts, prompt, wide, seed
):
    """Prompts, then ready sets with holes beside a new prompt, amid leftovers that are no numbers.

    Orders and limits of all kinds; the prompts' are low, so that every query sees something.
    """
    blocks = -(-200 // block_size)
    width = -(-head_size // 8) * 8 if wide else 0
    shape = Shape(group * kv_heads, kv_heads, head_size, block_size, dtype, blocks, width)
    lanes = Lanes(shape, seed, DEVICE, leftover=float("nan"))
    kernel = make_kernel(shape, part_keys)
    rows = lanes.rng.permutation(TABLE_ROWS).tolist()
    prompts = [(row, np.arange(3)) for row, _ in zip(rows, counts, strict=False)]
    fed = 3 * len(prompts)
    assert_close(lanes.step(kernel, prompts, 0, orders=np.zeros(fed)), dtype)
    decoding = []
    for (row, _), count in zip(prompts[::-1], counts, strict=True):
        positions = lanes.some(count)
        decoding.append((row, positions[positions > 2] if positions[-1] > 2 else np.array([9])))
    opening = (rows[len(counts)], np.arange(prompt))
    known = sum(len(positions) for _, positions in decoding)
    orders = np.concatenate([lanes.rng.integers(0, 9, known), np.zeros(prompt)])
    limits = np.concatenate([lanes.rng.integers(0, 9, known), np.zeros(prompt)])
    step = lanes.step(kernel, [*decoding, opening], len(decoding), orders, limits)
    assert_close(step, dtype)


@pytest.mark.parametrize("count", [1, 33, 64])
def test_a_lane_of_many_queries_is_cut_into_tiles(count):
    """64 queries of a group of 8 take four tiles, whose parts are merged one by one."""
    shape = Shape(8, 1, 64, 64, torch.float16, blocks_per_lane=4)
    lanes, kernel = Lanes(shape, 5, DEVICE), make_kernel(shape)
    lanes.step(kernel, [(2, np.arange(4))], 0)
    positions = np.sort(4 + lanes.rng.choice(250, count, replace=False))
    fed = lanes.feed([(2, positions)], 1)
    metadata = kernel.prepare(fed.inputs)
    assert metadata.table[0] == -(-count // 16) * (positions[-1] // 64 + 1)
    output = torch.full_like(fed.query, float("nan"))
    lanes.run(kernel, fed, metadata, output)
    assert_close((output.cpu(), fed.expected), shape.dtype)


def test_more_parts_than_are_merged_at_once():
    """Eleven, the last of which outweigh the first for some heads, or see nothing."""
    shape = Shape(16, 1, 64, 64, torch.float32, blocks_per_lane=11)
    lanes, kernel = Lanes(shape, 4, DEVICE), make_kernel(shape)
    lanes.step(kernel, [(0, np.arange(690))], 0)
    fed = lanes.feed([(0, np.array([200, 700]))], 1)
    metadata = kernel.prepare(fed.inputs)
    assert metadata.parts == 11
    output = torch.full_like(fed.query, float("nan"))
    lanes.run(kernel, fed, metadata, output)
    assert_close((output.cpu(), fed.expected), shape.dtype)


def test_the_batch_changes_no_bit():
    """Whichever lanes run beside it, a lane's parts are the same."""
    shape = Shape(4, 2, 64, 64, torch.float32, blocks_per_lane=4)

    def run(others):
        lanes, kernel = Lanes(shape, 1, DEVICE), make_kernel(shape)
        lanes.step(kernel, [(0, np.arange(200)), (1, np.arange(40))], 0)
        torch.manual_seed(7)
        inputs = [(0, np.array([200, 230, 255])), *[(row, np.array([40, 41])) for row in others]]
        return lanes.step(kernel, inputs, len(inputs))[0][:3]

    assert torch.equal(run([]), run([1]))


@pytest.mark.parametrize("part_keys", [64, 512], ids=["merged", "in-one-part"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_float8_keys_and_values(dtype, part_keys):
    """As exact as what was stored, and what is out of range is stored as the largest number."""
    if DEVICE.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 needs compute capability 8.9")
    shape = Shape(4, 2, 64, 32, dtype)
    lanes = Lanes(shape, 2, DEVICE, kv_scales=(0.25, 0.002))
    kernel = make_kernel(shape, part_keys)
    assert_close(lanes.step(kernel, [(4, np.arange(70))], 0), dtype)
    assert_close(lanes.step(kernel, [(4, np.array([71, 90, 130]))], 1), dtype)


def test_an_input_without_a_slot_writes_nothing():
    shape = Shape(2, 1, 64, 16, torch.float32)
    lanes, kernel = Lanes(shape, 0, DEVICE), make_kernel(shape)
    fed = lanes.feed([(0, np.arange(3))], 0)
    fed.inputs.slot_mapping[1] = -1
    before = lanes.cache.clone()
    lanes.run(kernel, fed, kernel.prepare(fed.inputs), torch.empty_like(fed.query))
    changed = (lanes.cache != before).view(-1, 2, shape.block_size, shape.head_size).any(-1)
    assert changed.sum((0, 2)).tolist() == [2, 2]  # two keys, two values


class Launches:
    """Records the kernels' launches, as a CUDA graph does: addresses and plain numbers."""

    def __init__(self, monkeypatch):
        self.calls = []
        for name in ("write", "attend", "merge"):
            monkeypatch.setattr(triton_kernels, name, self._Recorder(self, name))

    class _Recorder:
        def __init__(self, launches, name):
            self._calls, self._kernel = launches.calls, getattr(triton_kernels, name)

        def __getitem__(self, grid):
            def launch(*args, **kwargs):
                self._calls.append(lambda: self._kernel[grid](*args, **kwargs))

            return launch

    def replay(self):
        for call in self.calls:
            call()


def test_captured_launches_serve_another_batch(monkeypatch):
    """Other lanes, numbers of inputs, positions and parts, in the same buffers."""
    shape = Shape(4, 2, 64, 32, torch.float32)
    lanes, kernel = Lanes(shape, 3, DEVICE), make_kernel(shape)
    lanes.step(kernel, [(1, np.arange(30)), (5, np.arange(9)), (6, np.arange(2))], 0)
    wide = lanes.feed([(row, lanes.some(8)) for row in (1, 5, 6)], 3)
    fits, tall = kernel.shapes(24, lanes.slots)
    assert (fits.rows, tall.rows) == (16, 32)
    table = torch.zeros(len(fits.table), dtype=torch.int32, device=DEVICE)
    captured = replace(wide.inputs, tiling=fits, tile_table=table)

    def fill(fed):
        inputs, count = fed.inputs, len(fed.query)
        tiling = kernel.tile(inputs.lanes, inputs.lane_starts, inputs.last_positions)
        assert tiling.rows == fits.rows
        assert tiling.parts <= fits.parts
        table[: len(tiling.table)] = torch.from_numpy(tiling.table).to(DEVICE)
        for name in ("positions", "limits", "slot_mapping"):
            getattr(captured, name)[:count] = getattr(inputs, name)
        captured.slot_mapping[count:] = -1
        for name in ("query", "key", "value"):
            getattr(wide, name)[:count] = getattr(fed, name)

    output = torch.empty_like(wide.query)
    launches = Launches(monkeypatch)
    lanes.run(kernel, wide, kernel.prepare(captured), output)
    assert len(launches.calls) == 3
    fill(wide)
    launches.replay()
    assert_close((output.cpu(), wide.expected), shape.dtype)
    for inputs in ([(5, lanes.some(7)), (6, lanes.some(8))], [(6, np.array([50]))]):
        fed = lanes.feed(inputs, len(inputs))
        fill(fed)
        output.fill_(float("nan"))
        launches.replay()
        count = len(fed.query)
        assert_close((output[:count].cpu(), fed.expected), shape.dtype)
        assert output[count:].isnan().all()


@pytest.mark.parametrize("terminated", [True, False], ids=["terminated", "plain"])
def test_whole_steps_give_the_torch_kernel_s_tokens(terminated, tmp_path):
    """Windows 1, 4 and C, guided or not, adaptive or not, arriving one by one, of two sizes."""
    make_tiny_model(tmp_path, row_terminator=terminated, grids=GRIDS, seed=1)
    sampled = {"temperature": 0.8, "top_k": 40, "seed": 11}
    guided = {"unconditional": NEGATIVE, "guidance_scale": 3.0}
    images = [
        make_image(terminated, 3, 6, window=1, **guided),
        make_image(terminated, 3, 6, window=4, prompt=[1, *range(5, 25), 2], **sampled),
        make_image(terminated, 3, 6, window=6, **guided, **sampled),
        make_image(terminated, 4, 4, window=2, policy=ADAPTIVE, **guided, **sampled),
        make_image(terminated, 4, 4, window=1, **sampled),
    ]

    def decode(kernel):
        room = Room(tmp_path, kernel=kernel, device=DEVICE)
        for index, image in enumerate(images):
            room.add(str(index), image)
            room.step()
        room.run()
        return {name: result.tokens for name, result in room.results.items()}

    tokens = decode(TritonAttention(2, 32, torch.float32, DEVICE, part_keys=64))
    assert tokens == decode(TorchAttention(2, torch.float32))
    for drawn in tokens.values():
        assert_diverse(drawn)
