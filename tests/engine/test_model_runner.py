"""How vLLM's hooks have steps captured; for what is captured see test_captured_models.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zipar_vllm.engine import model_runner
from zipar_vllm.engine.model_runner import ImageModelRunner


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
