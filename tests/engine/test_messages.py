"""What the runner hands to vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.traffic import Traffic
from zipar_vllm.decoding.decoder import Release, StepResult
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


def releases() -> StepResult:
    """Rows of three images; the first and the last want their log-probabilities."""
    rows = [Release(0, 2, 5, 9, True), Release(1, 0, 0, 3, False), Release(3, 1, 4, 6, True)]
    return StepResult(rows, 9, 4, {})


def make_table(device: str) -> Any:
    tokens = torch.arange(30, device=device).view(3, 10)
    scores = torch.stack([-tokens / 8, tokens + 1.0], -1).float()
    return SimpleNamespace(tokens=tokens, scores=scores)


def test_released_rows_and_their_scores() -> None:
    output = StepOutput(list("abcd"), releases(), make_table("cpu")).get_output()
    rows = [[25, 26, 27, 28], [0, 1, 2], [], [14, 15]]
    assert output.sampled_token_ids == rows
    logprobs = output.logprobs
    assert logprobs.logprob_token_ids[:, 0].tolist() == rows[0] + rows[3]
    assert logprobs.logprobs[:, 0].tolist() == [-token / 8 for token in rows[0] + rows[3]]
    assert logprobs.sampled_token_ranks.tolist() == [token + 1 for token in rows[0] + rows[3]]


def test_they_leave_a_device_in_one_copy() -> None:
    table = make_table("meta")
    with Traffic() as traffic:
        StepOutput(list("abcd"), releases(), table)
    assert (traffic.copies_out, traffic.waits, traffic.launches) == (1, 0, 1)
