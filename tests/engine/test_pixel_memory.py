"""What pixels take of a GPU's memory: who is told, who measures, and what. Not run on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zipar_vllm.core.grid import Grid
from zipar_vllm.engine import pixel_memory
from zipar_vllm.engine.pixel_memory import (
    PIXEL_DEVICE,
    measure_pixels,
    renders_pixels,
    tell_pixel_device,
    widest_grid,
)
from zipar_vllm.models import DEMO_PATH
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.models.sizes import AnySizes, FixedSizes, Sizes


def test_a_gpus_workers_are_told_and_a_cpus_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"zipar_spare_inputs": 5}
    assert tell_pixel_device(others, "cuda:1") == others
    assert tell_pixel_device(None, "cpu") == {}
    monkeypatch.setattr(pixel_memory, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    assert tell_pixel_device(others, "cuda:1") == others | {PIXEL_DEVICE: "cuda:1"}
    assert others == {"zipar_spare_inputs": 5}
    assert tell_pixel_device({PIXEL_DEVICE: "cpu"}, "cuda") == {PIXEL_DEVICE: "cpu"}


@pytest.mark.parametrize(
    ("told", "worker", "is_told"),
    [
        ("cuda", "cuda:0", True),
        ("cuda", "cuda", True),
        ("cuda:1", "cuda:1", True),
        ("", "cuda:0", True),
        ("", "cuda:1", False),
        ("cuda:1", "cuda:0", False),
        ("cpu", "cuda:0", False),
        (None, "cuda:0", False),
        ("cpu", "cpu", False),
    ],
)
def test_the_worker_of_that_gpu_measures(
    monkeypatch: pytest.MonkeyPatch, told: str | None, worker: str, is_told: bool
) -> None:
    monkeypatch.setattr(pixel_memory, "default_device", lambda: "cuda")
    additional = {} if told is None else {PIXEL_DEVICE: told}
    assert renders_pixels(additional, torch.device(worker)) is is_told


@pytest.mark.parametrize(
    ("sizes", "max_tokens", "widest"),
    [
        # Eight of the small ones are rendered at once, three of the others.
        (FixedSizes({"384x384": Grid(24, 24), "256x256": Grid(16, 16)}), 999, Grid(16, 16)),
        (FixedSizes({"512x512": Grid(32, 32), "768x768": Grid(48, 48)}), 9999, Grid(48, 48)),
        (FixedSizes({"512x512": Grid(32, 32), "768x768": Grid(48, 48)}), 2304, Grid(32, 32)),
        (FixedSizes({"512x512": Grid(32, 32)}), 1024, None),
        # Larger ones are rendered in tiles.
        (FixedSizes({"2048x2048": Grid(64, 64), "768x768": Grid(24, 24)}), 9999, Grid(24, 24)),
        (FixedSizes({"2048x2048": Grid(64, 64)}), 9999, Grid(64, 64)),
        # Emu3's, whose positions allow more than its largest listed size.
        (AnySizes({"720x720": Grid(90, 90, True)}, 8, 9216, True), 9216, Grid(95, 95, True)),
    ],
)
def test_the_widest_batch_has_most_pixels(
    sizes: Sizes, max_tokens: int, widest: Grid | None
) -> None:
    spec: Any = SimpleNamespace(sizes=sizes)
    assert widest_grid(spec, max_tokens) == widest


@torch.inference_mode()
def test_what_is_reserved_beyond_what_was_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch.cuda's names replaced: reserved memory grows by loading and by rendering."""
    gpu, now, peak = torch.device("cuda", 1), [100], [5000]  # of what was there before

    def reserve(size: int) -> None:
        now[0] += size
        peak[0] = max(peak[0], now[0])

    def load(model: str, revision: str | None, device: torch.device) -> Any:
        assert (model, revision, device) == (str(DEMO_PATH), "main", gpu)
        loaded = load_image_model(model)
        reserve(20)

        def decode(codes: torch.Tensor) -> None:
            reserve(loaded.decode(codes).numel())

        return SimpleNamespace(spec=loaded.spec, decode=decode)

    def reset(device: torch.device) -> None:
        peak[0] = now[0]

    monkeypatch.setattr(pixel_memory, "load_image_model", load)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: now.__setitem__(0, 60))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: now[0])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: peak[0])
    assert measure_pixels(str(DEMO_PATH), "main", gpu, 620) == 20 + 16 * 192 * 192 * 3
    now[0] = 100
    assert measure_pixels(str(DEMO_PATH), "main", gpu, 100) == 20  # no picture fits
