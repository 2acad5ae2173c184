"""Real engines over tiny random models, started once and shared.

They run inside the test process, so that tests can step them one forward pass at a time and look
into the scheduler. Stock vLLM runs in a process of its own: see ``stock.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.cases import assert_diverse, expected
from tests.checkpoints import emu3, emu35, janus, llamagen, lumina
from tests.tiny import make_tiny_model
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.engine.borrowed import ImageStats, get_stats
from zipar_vllm.models.registry import load_spec
from zipar_vllm.prepare import PreparedImage

GRIDS = {"64x64": (8, 8), "96x64": (6, 12), "32x128": (10, 4)}

FAMILIES: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "janus": (janus.make_janus, {}),
    "emu3": (emu3.make_emu3, {"max_model_len": 9216}),
    "emu3.5": (emu35.make_emu35, {"max_model_len": 9216}),
    "llamagen": (llamagen.make_llamagen, {"max_model_len": None}),  # what its configuration says
    "llamagen-text": (
        partial(llamagen.make_llamagen, side=32, features=llamagen.FEATURES),
        {"max_model_len": None, "max_num_batched_tokens": 64},  # prompts come in chunks
    ),
    "lumina": (lumina.make_lumina, {"max_model_len": 4096}),
}
"""What saves a small checkpoint of a published family, and its engine's arguments."""


@dataclass
class Finished:
    """A finished image: its vocabulary ids in raster order and the engine's own step count."""

    tokens: list[int]
    steps: int


@dataclass
class Engine:
    """An in-process engine that a test drives step by step."""

    path: Path
    llm: Any
    outputs: dict[str, Finished] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    logprobs: dict[str, Any] = field(default_factory=dict)
    released: dict[str, list[int]] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)

    @property
    def vocabulary(self) -> Vocabulary:
        return load_spec(self.path).vocabulary

    @property
    def terminated(self) -> bool:
        return self.vocabulary.is_terminated

    @property
    def core(self) -> Any:
        return self.llm.llm_engine.engine_core.engine_core

    @property
    def scheduler(self) -> Any:
        return self.core.scheduler

    @property
    def runner(self) -> Any:
        return self.core.model_executor.driver_worker.worker.model_runner

    @property
    def free_blocks(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    @property
    def num_running(self) -> int:
        """Images whose state the runner holds."""
        return len(self.runner.decoder.table)

    def add(self, name: str, image: PreparedImage, logprobs: bool = False) -> None:
        from zipar_vllm.engine.request import make_request

        self.llm.llm_engine.add_request(name, *make_request(image, logprobs))

    def abort(self, name: str) -> None:
        self.llm.llm_engine.abort_request([name])

    def step(self) -> None:
        for output in self.llm.llm_engine.step():
            name, completion = output.request_id, output.outputs[0]
            if not completion.token_ids and not output.finished:
                self.begun.append(name)
                continue
            self.released.setdefault(name, []).append(len(completion.token_ids))
            if output.finished and completion.finish_reason == "length":
                steps = output.kv_transfer_params["zipar_steps"]
                self.logprobs[name] = completion.logprobs
                self.outputs[name] = Finished(list(completion.token_ids), steps)
            elif output.finished:
                self.failed[name] = completion.finish_reason

    def run(self, limit: int = 2000) -> None:
        """Step until nothing is left; fails rather than hang."""
        for _ in range(limit):
            if not self.llm.llm_engine.has_unfinished_requests():
                return
            self.step()
        raise AssertionError(f"still running after {limit} steps")

    def generate(self, image: PreparedImage) -> Finished:
        """One image, alone."""
        self.add("alone", image)
        self.run()
        return self.outputs.pop("alone")


def assert_batch_is_the_oracles(
    engine: Engine, images: Mapping[str, PreparedImage], oracle: Any
) -> None:
    """Draw images together: the tokens of the reference decoder over an oracle, and its passes."""
    for name, image in images.items():
        engine.add(name, image)
    engine.run()
    for name, image in images.items():
        tokens, passes = expected(engine.path, engine.vocabulary, image, model=oracle)
        assert_diverse(tokens)
        assert (engine.outputs[name].tokens, engine.outputs[name].steps) == (tokens, passes), name


def assert_scores_are_raster_orders(engine: Engine, image: PreparedImage) -> None:
    """Draw an unguided image in raster order and score what came: the same log-probabilities."""
    engine.add("drawn", image, logprobs=True)
    engine.run()
    codes = engine.vocabulary.codes_of_picture(engine.outputs["drawn"].tokens)
    engine.add("given", replace(image, picture=tuple(codes)), logprobs=True)
    engine.run()
    assert engine.outputs["given"].tokens == engine.outputs["drawn"].tokens
    assert engine.outputs["given"].steps == image.grid.rows + 1
    drawn, given = (
        [own.logprob for position in engine.logprobs[name] for own in position.values()]
        for name in ("drawn", "given")
    )
    assert given == pytest.approx(drawn, abs=1e-3)
    assert min(drawn) < -1


STARTED: list[Engine] = []
"""All engines, so that none ends before the tests do: it would take vLLM's process groups along."""


def start_engine(path: Path, **overrides: Any) -> Engine:
    """An in-process engine over the model in ``path``, which plans one forward pass at a time."""
    from vllm import LLM

    from zipar_vllm.engine.arguments import engine_arguments

    arguments: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 256,
        "kv_cache_memory_bytes": 64 << 20,
        "enforce_eager": True,
        "disable_log_stats": False,
    }
    # vLLM binds this thread to its cores and preloads libraries by the environment: processes
    # that are started from here later should have neither.
    allowed = os.sched_getaffinity(0)
    with patch.dict(os.environ, VLLM_ENABLE_V1_MULTIPROCESSING="0"):
        engine = Engine(path, LLM(**engine_arguments(path, **arguments | overrides)))
    os.sched_setaffinity(0, allowed)
    engine.scheduler.burst_seconds = 0.0
    STARTED.append(engine)
    return engine


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Folders of two tiny random models, by whether their rows are terminated."""
    paths = {}
    for terminated in (True, False):
        path = tmp_path_factory.mktemp("tiny") / ("rows" if terminated else "plain")
        make_tiny_model(
            path,
            row_terminator=terminated,
            grids=GRIDS,
            dtype=torch.float32,
            seed=1,
            initializer_range=0.4,
        )
        paths[terminated] = path
    return paths


@pytest.fixture(scope="session")
def engines(tiny_models: dict[bool, Path]) -> Callable[[bool], Engine]:
    """A running engine of either tiny model, started when it is first asked for."""

    @cache
    def engine(terminated: bool) -> Engine:
        return start_engine(tiny_models[terminated])

    return engine


@pytest.fixture(scope="session")
def family_engines(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Engine]:
    """A running engine of a family's small checkpoint, started when it is first asked for."""

    @cache
    def engine(name: str) -> Engine:
        make, arguments = FAMILIES[name]
        path = tmp_path_factory.mktemp(name) / "model"
        make(path)
        return start_engine(path, **arguments)

    return engine


@pytest.fixture(params=[True, False], ids=["terminated", "plain"])
def engine(request: pytest.FixtureRequest, engines: Callable[[bool], Engine]) -> Iterator[Engine]:
    """Each engine in turn, idle, with all its memory free before and after."""
    yield from idle(engines(request.param))


def idle(engine: Engine) -> Iterator[Engine]:
    engine.outputs.clear()
    engine.failed.clear()
    engine.released.clear()
    engine.begun.clear()
    free = engine.free_blocks
    yield engine
    engine.run()
    assert engine.free_blocks == free


# Until the end of the session: an engine that goes takes what all in the process share with it.
@pytest.fixture(scope="session")
def small_engine(tiny_models: dict[bool, Path]) -> Engine:
    """An engine whose cache holds two guided images at a time, and little more."""
    return start_engine(
        tiny_models[True], num_gpu_blocks_override=18, max_num_batched_tokens=16, max_model_len=512
    )


@pytest.fixture
def small(small_engine: Engine) -> Iterator[Engine]:
    """The small engine, idle, with all its memory free before and after."""
    yield from idle(small_engine)


@pytest.fixture
def seen(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[ImageStats]:
    """The statistics of each step from now on."""
    seen: list[ImageStats] = []
    make_stats = engine.scheduler.make_stats

    def keep(*args: Any, **kwargs: Any) -> Any:
        stats = make_stats(*args, **kwargs)
        seen.append(get_stats(stats))
        return stats

    monkeypatch.setattr(engine.scheduler, "make_stats", keep)
    return seen
