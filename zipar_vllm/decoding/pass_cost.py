"""What a pass costs beside its inputs: found by decoding pictures that nobody asked for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from zipar_vllm.core.grid import Grid
from zipar_vllm.params import MAX_DRAFTS, ImageParams

from .decoder import ImageDecoder, StepModel
from .job import ImageJob

MAX_COST = 1024.0
"""More inputs than any pass has to spare."""
MAX_IMAGES = 8
PASSES = 12


class PassCost(NamedTuple):
    """What a pass costs beside its inputs, in inputs.

    Attributes:
        fixed: Of every pass.
        per_lane: Of every lane in it.
    """

    fixed: float
    per_lane: float


def measure_pass_cost(
    decoder: ImageDecoder, model: StepModel, grid: Grid, num_blocks: int, max_inputs: int
) -> PassCost:
    """Time passes of one image, of several, and of one that looks far ahead, all in raster order.

    They are in the middle of their pictures: what was decoded before is a prompt here, whose keys
    and values are what the cache happens to hold.

    Args:
        decoder: Has no images.
        model: Runs the passes.
        grid: Of the pictures.
        num_blocks: KV blocks that there are; all pictures write into the same ones.
        max_inputs: The most inputs of a pass.
    """
    half = replace(grid, rows=-(-grid.rows // 2))
    prompt = max(1, grid.num_positions - half.num_positions)
    job = ImageJob(half, ImageParams(window=grid.columns), lane_prompts=(prompt,))
    ahead = replace(job, params=replace(job.params, drafts=min(MAX_DRAFTS, max_inputs - 1)))
    blocks = [index % num_blocks for index in range(job.num_blocks(decoder.table.block_size))]
    count = min(MAX_IMAGES, decoder.table.max_images, max_inputs)
    _, alone = _time_passes(decoder, model, [job], blocks)
    _, together = _time_passes(decoder, model, [job] * count, blocks)
    inputs, far = _time_passes(decoder, model, [ahead], blocks)
    decoder.times.reset()
    per_input = (far - alone) / max(inputs - 1, 1)
    if per_input <= 0:
        return PassCost(MAX_COST, 0.0)
    per_image = (together - alone) / max(count - 1, 1)
    per_lane = max(0.0, per_image - per_input)
    fixed = max(0.0, alone - per_lane - per_input)
    return PassCost(min(fixed / per_input, MAX_COST), min(per_lane / per_input, MAX_COST))


def _time_passes(
    decoder: ImageDecoder, model: StepModel, jobs: Sequence[ImageJob], blocks: list[int]
) -> tuple[float, float]:
    """Inputs and seconds of a pass that decodes pictures together, medians."""
    inputs: list[int] = []
    seconds: list[float] = []
    scheduled = {str(place): 1 for place in range(len(jobs))}
    drafts = {name: int(job.params.drafts) for name, job in zip(scheduled, jobs, strict=True)}
    for _ in range(PASSES):  # at most; each batch of pictures brings a pass or several
        for name, job in zip(scheduled, jobs, strict=True):
            decoder.add(name, job, [0] * job.prompt_length, blocks)
            decoder.table[name].prefilled = job.prompt_length - 1
        decoder.step(scheduled, model)
        while len(seconds) < PASSES and not decoder.table["0"].progress.finished:
            start = time.perf_counter()
            decoder.step(scheduled, model, drafts=drafts)
            decoder.table.tokens[0, 0].item()  # waits for the device
            seconds.append(time.perf_counter() - start)
            inputs.append(decoder.num_inputs)
        for name in scheduled:
            decoder.remove(name)
    return (statistics.median(inputs), statistics.median(seconds)) if seconds else (1, 0.0)
