"""Computed figures: against hand counts, transformers' own models and ``zipar models``."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.gpu.engines import write_model
from benchmarks.roofline import (
    free_inputs,
    free_inputs_table,
    grid_table,
    image_bytes,
    memory_table,
    roofline,
    roofline_table,
)
from benchmarks.shapes import EMU3, SHAPES, TINY
from server.cli.models import kv_bytes_per_token


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_shapes_are_those_of_real_models(tmp_path, shape):
    """A Llama of that shape, without memory: its weights, and what a token of a lane takes."""
    write_model(tmp_path, shape, shape.grid.rows, shape.grid.columns)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    norms = (2 * shape.layers + 1) * shape.width
    embeddings = model.get_input_embeddings().weight.numel()
    assert shape.weights == sum(p.numel() for p in model.parameters()) - norms - embeddings
    assert shape.kv_bytes() == kv_bytes_per_token(str(tmp_path))


def test_a_step_counted_by_hand():
    """8 x 8 tokens with terminators: 72 positions in 64 steps, two lanes, 96 keys each on average.

    A layer has 6 * 128 * 64 weights for attention and 3 * 128 * 64 more, the output 128 * 200.
    """
    weights = 2 * (6 * 128 * 64 + 3 * 128 * 64) + 128 * 200
    one = roofline(TINY, TINY.grid, 8, 1)
    assert (one.inputs, one.steps) == (2.25, 64)
    read = 2 * weights + 2 * 96 * 512  # 2 layers, keys and values, 2 heads of 32 numbers of 2 bytes
    assert one.reading == pytest.approx(read / 3.35e12)
    per_input = 2 * weights + 96 * 4 * 2 * 4 * 32
    assert one.computing == pytest.approx(2.25 * per_input / 989.5e12)
    assert one.seconds == one.reading
    # What is read once is multiplied once per input here, an operation per byte.
    assert read == per_input
    assert free_inputs(TINY, TINY.grid, 1) == pytest.approx(989.5 / 3.35)
    assert image_bytes(TINY, TINY.grid) == 2 * 3 * 64 * 512  # 132 slots a lane: three blocks


def test_beyond_the_free_inputs_a_step_computes_longer_than_it_reads():
    images = 16
    free = free_inputs(EMU3, EMU3.grid, images)
    for window in (90, 16, 8, 4, 2):
        step = roofline(EMU3, EMU3.grid, window, images)
        assert (step.computing > step.reading) == (step.inputs > free)


def test_tables_have_a_row_per_case():
    assert len([line for line in memory_table() if line.startswith("| Emu3-Gen")]) == 2
    assert len(free_inputs_table()) == 2 + len(SHAPES)
    assert len([line for line in roofline_table() if line.startswith("| Emu3-Gen")]) == 3 * 3
    assert grid_table()[-1].startswith("| 128 x 128 | 16512 |")
