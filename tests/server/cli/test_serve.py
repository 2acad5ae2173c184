"""``zipar serve``: the command line it gives vLLM, and what it fills in."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.cli import serve
from tests.checkpoints.emu3 import make_emu3
from zipar_vllm.engine import arguments as engine_arguments
from zipar_vllm.engine import pixel_memory
from zipar_vllm.engine.arguments import ONE_PROCESS, RANKS, SCHEDULER, required_arguments
from zipar_vllm.models import DEMO_PATH


def options(**wishes: Any) -> Namespace:
    """Parsed options of vLLM's, as its defaults and ours leave them."""
    defaults = dict.fromkeys(RANKS, 1) | required_arguments(DEMO_PATH)
    usual = {
        "model_tag": str(DEMO_PATH),
        "revision": None,
        "model_class_overrides": {},
        "quantization": None,
        "additional_config": {},
        "dtype": "auto",
        "distributed_executor_backend": None,
    }
    return Namespace(**defaults | usual | wishes)


def value_of(words: list[str], flag: str) -> str:
    return words[len(words) - 1 - words[::-1].index(flag) + 1]


def test_the_embedded_model_needs_no_arguments() -> None:
    words = serve.vllm_arguments([])
    assert words[0] == str(DEMO_PATH)
    assert value_of(words, "--scheduler-cls") == SCHEDULER
    assert value_of(words, "--served-model-name") == "zipar-demo"
    assert value_of(words, "--kv-cache-memory-bytes") == str(1 << 30)


def test_a_folder_is_served_by_its_name(tmp_path: Path) -> None:
    words = serve.vllm_arguments([str(tmp_path), "--port", "1"])
    assert words[0] == str(tmp_path)
    assert value_of(words, "--served-model-name") == tmp_path.name
    assert "--kv-cache-memory-bytes" not in words
    assert words[-2:] == ["--port", "1"]


def test_the_users_options_come_last_and_win() -> None:
    words = serve.vllm_arguments(["--shutdown-timeout", "5", "--gpu-memory-utilization", "0.5"])
    assert value_of(words, "--shutdown-timeout") == "5"
    assert "--kv-cache-memory-bytes" not in words


@pytest.mark.parametrize(
    ("native", "wish", "dtype", "said"),
    [
        (True, "auto", "auto", "in the model's dtype;"),
        (True, "float32", "float32", "in float32;"),
        (False, "auto", "float32", "in float32 (this CPU has no instructions for bfloat16);"),
        (False, "bfloat16", "bfloat16", "in bfloat16"),
    ],
)
def test_dtype_is_chosen_by_the_processor_and_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    native: bool,
    wish: str,
    dtype: str,
    said: str,
) -> None:
    monkeypatch.setattr(engine_arguments, "has_bfloat16", lambda: native)
    parsed = options(dtype=wish)
    assert serve.complete(parsed) is None
    assert parsed.dtype == dtype
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wishes", "backend"),
    [
        ({}, ONE_PROCESS),
        ({"tensor_parallel_size": 2}, None),
        ({"distributed_executor_backend": "mp"}, "mp"),
    ],
)
def test_one_rank_has_one_process(wishes: dict[str, Any], backend: str | None) -> None:
    parsed = options(**wishes)
    assert serve.complete(parsed) is None
    assert parsed.distributed_executor_backend == backend


def test_what_image_decoding_needs_cannot_be_undone() -> None:
    problem = serve.complete(options(scheduler_cls="another"))
    assert problem == f"--scheduler-cls: got another, image decoding needs {SCHEDULER}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable_lora", True),
        ("enable_sleep_mode", True),
        ("pipeline_parallel_size", 2),
        ("speculative_config", {"method": "ngram"}),
    ],
)
def test_what_is_not_supported_is_refused_before_anything_starts(name: str, value: Any) -> None:
    problem = serve.complete(options(**{name: value}))
    assert problem == f"{name}: image decoding does not support it, leave it off"
    with pytest.raises(ValueError, match=f"^{name}: image decoding does not support it"):
        engine_arguments.engine_arguments(DEMO_PATH, **{name: value})


def test_a_gpus_worker_is_told_where_pixels_are_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = options()
    assert serve.complete(parsed) is None
    assert parsed.additional_config == {}
    monkeypatch.setattr(pixel_memory, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    monkeypatch.setenv("ZIPAR_PIXEL_DEVICE", "cuda:1")
    parsed = options(additional_config={"zipar_spare_inputs": 5})
    assert serve.complete(parsed) is None
    told = {"zipar_pixel_device": "cuda:1", "zipar_spare_inputs": 5}
    assert parsed.additional_config == told


@pytest.mark.parametrize("by_checkpoint", [True, False])
def test_8_bit_floats_are_refused_on_a_cpu(tmp_path: Path, by_checkpoint: bool) -> None:
    folder, wish = DEMO_PATH, "fp8"
    if by_checkpoint:
        folder, wish = Path(shutil.copytree(DEMO_PATH, tmp_path / "model")), None
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "fp8"}
        (folder / "config.json").write_text(json.dumps(config))
    problem = serve.complete(options(model_tag=str(folder), quantization=wish))
    assert problem == "quantization: got fp8, which vLLM cannot compute on a CPU"
    with pytest.raises(ValueError, match=r"^quantization: got fp8"):
        engine_arguments.engine_arguments(folder, quantization=wish)


def test_a_folder_without_a_model_is_told_of(tmp_path: Path) -> None:
    problem = serve.complete(options(model_tag=str(tmp_path)))
    assert problem is not None
    assert problem.startswith(f"{tmp_path}: ")


def test_bad_limits_end_before_anything_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "set_environment", lambda: None)
    monkeypatch.setattr(serve, "preload_engine", lambda: pytest.fail("too far"))
    monkeypatch.setenv("ZIPAR_IMAGE_TIMEOUT", "0")  # restored afterwards
    with pytest.raises(SystemExit, match="--image-timeout: got '-1'"):
        serve.main(["--image-timeout", "-1"])


def test_a_model_of_ours_runs_by_our_class(tmp_path: Path) -> None:
    make_emu3(tmp_path)
    parsed = options(model_tag=str(tmp_path))
    assert serve.complete(parsed) is None
    (target,) = parsed.model_class_overrides.values()
    assert target.endswith(".emu3:Emu3ForImageGeneration")
