"""What vLLM compiled before can be loaded again."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.compilation import decorators

from zipar_vllm.engine.compiled_models import loadable


@pytest.mark.parametrize("own", [None, lambda vllm_config: "its own"])
def test_loaded_functions_can_be_finalized(monkeypatch: pytest.MonkeyPatch, own: Any) -> None:
    def compiled() -> None: ...

    if own is not None:
        compiled.finalize_loading = own  # type: ignore[attr-defined]
    loaded = SimpleNamespace(_artifacts=SimpleNamespace(compiled_fn=compiled))

    def load(*args: Any, **kwargs: Any) -> Any:
        return loaded

    monkeypatch.setattr(torch.compiler, "load_compiled_function", load, raising=False)
    with loadable():
        assert torch.compiler.load_compiled_function("file") is loaded
    assert torch.compiler.load_compiled_function is load
    assert loaded._artifacts.compiled_fn.finalize_loading(None) == (own and own(None))


def test_vllm_still_asks_for_it() -> None:
    source = inspect.getsource(decorators)
    assert "torch.compiler.load_compiled_function(" in source
    assert "_artifacts.compiled_fn.finalize_loading(" in source
