"""Training inputs: masks, damage, windows."""

from __future__ import annotations

import random

import torch

from training.masks import COLUMNS, batch_mask, corrupt, draw_window, window_mask

LEVELS = (8, 5, 5, 5)


def test_padded_positions_are_seen_by_nobody_else() -> None:
    mask = batch_mask([COLUMNS, 4], [0, 3], prompt=5)
    assert mask.shape == (2, 1, 605, 605)
    assert torch.equal(mask[0, 0], window_mask(COLUMNS, 5))
    assert not mask[1, 0, 3:, :3].any()
    assert torch.equal(mask[1, 0, :3, :3], torch.eye(3, dtype=torch.bool))
    assert torch.equal(mask[1, 0, 3:, 3:], window_mask(4, 5)[3:, 3:])


def test_building_a_batch_leaves_the_cached_mask_alone() -> None:
    before = window_mask(8, 4).clone()
    batch_mask([8], [2], prompt=4)
    assert torch.equal(window_mask(8, 4), before)


def test_half_of_the_pictures_are_lightly_damaged_and_half_heavily() -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 1000, (400, 24, 24), generator=generator)
    damaged = corrupt(codes, LEVELS, 0.3, generator)
    assert damaged.min() >= 0
    assert damaged.max() < 1000
    share = (damaged != codes).float().mean((1, 2))
    assert 0.35 < (share < 0.3).float().mean() < 0.6
    assert share.max() > 0.9


def test_some_damage_is_another_picture_in_place() -> None:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 1000, (400, 24, 24), generator=generator)
    foreign = corrupt(codes, LEVELS, 0.3, generator) == codes.roll(1, 0)
    assert 0.15 < (foreign.float().mean((1, 2)) > 0.2).float().mean() < 0.35


def test_windows_are_raster_as_often_as_asked() -> None:
    rng = random.Random(0)
    windows = [draw_window(rng, 0.5) for _ in range(2000)]
    assert 0.45 < windows.count(COLUMNS) / 2000 < 0.55
    assert min(windows) >= 2
