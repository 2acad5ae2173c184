"""The names of vLLM's API server that ours relies on, checked against the installed version."""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from server import vllm_server
from server.cli import serve


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("vllm.entrypoints.cli.serve", "ServeSubcommand"),
        ("vllm.entrypoints.launchers.cli_args", "make_arg_parser"),
        ("vllm.entrypoints.serve.utils.api_utils", "cli_env_setup"),
        ("vllm.logger", "configure_logging_from_args"),
        ("vllm.utils.argparse_utils", "FlexibleArgumentParser"),
    ],
)
def test_every_name_is_where_it_is_looked_for(module: str, name: str) -> None:
    assert f"from {module} import {name}\n" in inspect.getsource(vllm_server)
    assert callable(getattr(importlib.import_module(module), name))


def test_the_serve_command_is_validated_and_run_on_parsed_options() -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand

    assert list(inspect.signature(ServeSubcommand.cmd).parameters) == ["args"]
    assert list(inspect.signature(ServeSubcommand.validate).parameters) == ["self", "args"]


def test_the_engines_process_is_started_by_a_context_that_can_be_replaced() -> None:
    from vllm.v1.engine import utils

    source = inspect.getsource(utils.CoreEngineProcManager.__init__)
    assert "get_mp_context()" in source  # looked up in the module, when it is called
    assert not inspect.signature(utils.get_mp_context).parameters


def test_the_application_knows_its_server_and_its_models() -> None:
    import vllm.entrypoints.launchers.launcher as launcher
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

    assert "app.state.server = server" in inspect.getsource(launcher)
    source = inspect.getsource(OpenAIServingModels)
    assert "self.base_model_paths" in source
    assert inspect.iscoroutinefunction(OpenAIServingModels.show_available_models)
    entrypoints = Path(inspect.getfile(launcher)).parents[1]
    assigned = "state.openai_serving_models = "
    assert any(assigned in path.read_text() for path in entrypoints.rglob("*.py"))


def test_a_state_without_a_server_is_not_started() -> None:
    assert not vllm_server.is_started(SimpleNamespace())
    assert not vllm_server.is_started(SimpleNamespace(server=SimpleNamespace(started=False)))
    assert vllm_server.is_started(SimpleNamespace(server=SimpleNamespace(started=True)))


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (None, "config.json is missing in the folder"),
        ("{}", "its architecture none cannot be served, known are LlamaForCausalLM, "),
        ('{"architectures": ["LlamaForCausalLM"]}', "it is no image model: it has no image_model"),
    ],
)
def test_a_model_that_cannot_be_served_is_told_of_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str | None, problem: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with patch.dict(os.environ), pytest.raises(SystemExit) as ended:
        vllm_server.run(serve.vllm_arguments([str(tmp_path)]), serve.complete)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"zipar serve: error: {tmp_path}: {problem}")
