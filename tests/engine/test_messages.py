"""What the runner hands to vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zipar_vllm.decoding.decoder import StepResult
from zipar_vllm.engine.messages import StepOutput


def test_on_a_gpu_a_step_without_rows_is_waited_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no more steps are under way than vLLM has planned for."""
    calls: list[str] = []

    class Event:
        def __init__(self, blocking: bool = False) -> None:
            calls.append("sleeps" if blocking else "spins")

        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("wait")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    table: Any = SimpleNamespace(tokens=SimpleNamespace(device=torch.device("cuda")), scores=None)
    output = StepOutput(["a", "b"], StepResult([], 2, 2, {}), table)
    assert calls == ["sleeps", "record"]
    assert output.get_output().sampled_token_ids == [[], []]
    assert calls == ["sleeps", "record", "wait"]
