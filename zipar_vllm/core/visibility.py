"""The visibility rule as one dense mask, for training, scoring and tests.

A key is seen by a query iff its position is at most the query's and its *order* at most the query's
limit. The order of a token is the step at which plain decoding feeds it, so that it counts as known
from then on; while a slot holds no key its order is :data:`UNWRITTEN`.

A step-by-step ZipAR decoding of a grid with row terminators feeds every token exactly once, so
one forward pass over the finished picture under this mask gives every logit of that decoding.
"""

from __future__ import annotations

import torch

from .grid import Grid

UNWRITTEN = 2**31 - 1
"""Order of a slot that holds no key: larger than any limit, in int32."""


def feed_steps(grid: Grid, window: int, prompt_length: int) -> torch.Tensor:
    """Compute the step at which each position of prompt + picture enters the KV cache.

    The prompt enters at step 0, token (i, j) at ``i * window + j + 1`` and the terminator of
    row i at ``(i + 1) * window``: it is known, so it is fed early, to start the next row.

    Returns:
        int64 tensor of shape ``[prompt_length + grid.num_positions]``.

    Raises:
        ValueError: the grid has no row terminator (a proxy is then fed twice, so no single
            step describes its position), or ``window`` is none of its windows.
    """
    if not grid.row_terminator:
        raise ValueError("the closed form needs a grid with a row terminator")
    grid.check_window(window)
    rows = torch.arange(grid.rows).unsqueeze(1)
    columns = torch.arange(grid.stride).unsqueeze(0)
    steps = rows * window + columns + 1
    steps[:, grid.columns] = (rows.squeeze(1) + 1) * window
    return torch.cat([torch.zeros(prompt_length, dtype=torch.int64), steps.flatten()])


def visibility_mask(grid: Grid, window: int, prompt_length: int) -> torch.Tensor:
    """Compute which key each query sees: those at or before it, in raster order and in time.

    Returns:
        bool tensor ``[L, L]`` (query, key), ``L = prompt_length + grid.num_positions``;
        with ``window == columns`` it is the causal mask.

    Raises:
        ValueError: as :func:`feed_steps`.
    """
    steps = feed_steps(grid, window, prompt_length)
    causal = torch.ones(len(steps), len(steps), dtype=torch.bool).tril()
    return causal & (steps.unsqueeze(0) <= steps.unsqueeze(1))
