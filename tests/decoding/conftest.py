"""Tiny models, with and without row terminators, and a room for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.tiny import make_tiny_model

from .room import Room

GRIDS = {"64x64": (8, 8), "96x64": (6, 12), "32x128": (10, 4)}


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """Folder of a tiny random model, by whether its rows are terminated."""

    @cache
    def make(terminated: bool) -> Path:
        path = tmp_path_factory.mktemp("tiny")
        make_tiny_model(path, row_terminator=terminated, grids=GRIDS, seed=1)
        return path

    return make


@pytest.fixture(scope="session")
def rooms(model_path: Callable[[bool], Path]) -> Callable[[bool], Room]:
    @cache
    def room(terminated: bool) -> Room:
        return Room(model_path(terminated))

    return room


@pytest.fixture(params=[True, False], ids=["terminated", "plain"])
def terminated(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def room(terminated: bool, rooms: Callable[[bool], Room]) -> Iterator[Room]:
    """A room, idle and with all its memory free before and after."""
    room = rooms(terminated)
    room.results.clear()
    free = room.free_blocks
    yield room
    room.run()
    assert room.free_blocks == free


@pytest.fixture
def path(terminated: bool, model_path: Callable[[bool], Path]) -> Path:
    return model_path(terminated)
