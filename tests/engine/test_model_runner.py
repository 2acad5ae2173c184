"""How vLLM's hooks have steps captured; for what is captured see test_captured_models.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch

from zipar_vllm.engine import model_runner
from zipar_vllm.engine.model_runner import ImageModelRunner
from zipar_vllm.engine.pixel_memory import PIXEL_DEVICE


class Decoder:
    def __init__(self, calls: list[Any]) -> None:
        self._calls = calls

    def capture(self, model: Any, capacities: Sequence[int], pool: Any = None) -> None:
        self._calls.append((list(capacities), pool))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []

    @contextmanager
    def graph_capture(device: torch.device) -> Iterator[None]:
        calls.append("begin")
        yield
        calls.append("end")

    free = iter([900, 200])
    platform = SimpleNamespace(get_global_graph_pool=lambda: "all", graph_pool_handle=lambda: "own")
    monkeypatch.setattr(model_runner, "graph_capture", graph_capture)
    monkeypatch.setattr(model_runner, "current_platform", platform)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (next(free), 1000))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return calls


def make_runner(calls: list[Any], device: str, eager: bool = False) -> Any:
    runner = ImageModelRunner.__new__(ImageModelRunner)
    runner.device = torch.device(device)
    runner.scheduler_config = SimpleNamespace(max_num_batched_tokens=20)
    runner.model_config = SimpleNamespace(enforce_eager=eager)
    runner.decoder = Decoder(calls)  # type: ignore[assignment]
    return runner


def test_steps_up_to_the_token_budget_are_captured_with_vllm_s_pool(calls: list[Any]) -> None:
    assert make_runner(calls, "cuda").capture_model() == 700
    assert calls == ["begin", ([8, 16, 24], "all"), "end"]


def test_the_profile_holds_as_much_memory_as_they_take(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: (size, dtype, device.type))
    held = make_runner(calls, "cuda")._measure_captured()
    assert held == (700, torch.uint8, "cuda")
    assert calls == ["begin", ([8, 16, 24], "own"), "end", ([], None)]


@pytest.mark.parametrize(("device", "eager"), [("cpu", False), ("cuda", True)])
def test_the_profile_holds_none_where_none_is_captured(
    calls: list[Any], device: str, eager: bool
) -> None:
    assert make_runner(calls, device, eager)._measure_captured() is None
    assert calls == []


def rendering_runner(device: str, pixels: str, given: int | None = None) -> Any:
    runner: Any = ImageModelRunner.__new__(ImageModelRunner)
    runner.device = torch.device(device)
    runner.model_config = SimpleNamespace(model="model", revision="main", max_model_len=620)
    runner.vllm_config = SimpleNamespace(
        additional_config={PIXEL_DEVICE: pixels},
        cache_config=SimpleNamespace(kv_cache_memory_bytes=given),
        parallel_config=SimpleNamespace(_api_process_count=3),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=16),
    )
    return runner


def test_the_profile_holds_as_much_memory_as_pixels_take(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each of three API server processes."""

    def measure(*arguments: Any) -> int:
        calls.append(arguments)
        return 500

    monkeypatch.setattr(model_runner, "measure_pixels", measure)
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: (size, dtype, device.type))
    held = rendering_runner("cuda:1", "cuda:1")._measure_pixels()
    assert held == (1500, torch.uint8, "cuda")
    assert calls == [("model", "main", torch.device("cuda:1"), 620)]


@pytest.mark.parametrize(
    ("device", "pixels", "given"),
    [
        ("cuda:0", "cpu", None),
        ("cuda:0", "cuda:1", None),
        ("cpu", "cpu", None),
        ("cuda", "cuda", 9),
    ],
)
def test_the_profile_holds_none_where_pixels_take_none_or_nobody_asks(
    device: str, pixels: str, given: int | None
) -> None:
    """None of this GPU, or the KV cache's size is given."""
    assert rendering_runner(device, pixels, given)._measure_pixels() is None


def test_what_pixels_take_is_held_as_long_as_the_profile_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner, held = rendering_runner("cuda", "cuda"), []
    widths: list[tuple[int, bool]] = []

    def measure() -> torch.Tensor:
        tensor = torch.empty(5)
        held.append(ref(tensor))
        return tensor

    def see(width: int) -> None:
        widths.append((width, bool(held) and held[0]() is not None))

    def allocate(config: Any, is_profiling: bool) -> None:
        runner.decoder = SimpleNamespace(rehearse=lambda model, width, lanes: see(width))
        runner.kernel = runner.kv_cache_config = None

    runner.kv_caches = []
    runner.vllm_config.compilation_config = SimpleNamespace(static_forward_context={})
    for name, replacement in {
        "_measure_pixels": measure,
        "_dummy_run": see,
        "_measure_captured": lambda: None,
        "initialize_kv_cache": allocate,
        "get_kv_cache_spec": dict,
        "_one_block": lambda specs: None,
        "_most_lanes": lambda specs: 8,
    }.items():
        monkeypatch.setattr(runner, name, replacement, raising=False)
    runner.profile_run()
    assert widths == [(16, True), (16, True), (8, True)]
    assert held[0]() is None
