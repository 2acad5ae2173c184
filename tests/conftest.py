"""Markers, and the environment that every test shares."""

from __future__ import annotations

import os

import pytest

from tests.interpreted import has_gpu, interpret

# Set before anything imports vLLM, which reads its environment once.
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not has_gpu():
    interpret()  # before anything, vLLM for one, imports Triton's own functions


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here"))
