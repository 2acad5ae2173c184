"""Captured steps: the tokens of steps that were not, whatever batch they were captured with.

Recorded on a CPU, under Triton's interpreter; where there is a GPU, as CUDA graphs in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.cases import NEGATIVE, assert_diverse, expected, make_image
from tests.interpreted import has_gpu
from tests.recorded import NotCapturedError, recorded_graphs
from zipar_vllm.attention.triton_attention import TritonAttention
from zipar_vllm.decoding import decoder
from zipar_vllm.decoding.triton_sampler import TritonSampler
from zipar_vllm.prepare import ADAPTIVE, PreparedImage

from .room import Room

pytestmark = pytest.mark.slow

GUIDED: dict[str, Any] = {"unconditional": NEGATIVE, "guidance_scale": 3.0}
SAMPLED: dict[str, Any] = {"temperature": 0.9}
LONG = [1, *range(5, 25), 2]
Graphs = Callable[[], AbstractContextManager[list[Any]]]
COMPILED = "with a GPU, Triton's kernels are not interpreted: see the same test on cuda"


@contextmanager
def cuda_graphs() -> Iterator[list[torch.cuda.CUDAGraph]]:
    """CUDA's own graphs, on a stream that can be captured; the list grows with every replay."""
    replayed: list[torch.cuda.CUDAGraph] = []
    replay = torch.cuda.CUDAGraph.replay

    def count(graph: torch.cuda.CUDAGraph) -> None:
        replayed.append(graph)
        replay(graph)

    before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(before)
    with patch.object(torch.cuda.CUDAGraph, "replay", count), torch.cuda.stream(stream):
        yield replayed
    before.wait_stream(stream)


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.skipif(has_gpu(), reason=COMPILED)),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def graphs(device: torch.device) -> Graphs:
    return cuda_graphs if device.type == "cuda" else recorded_graphs


def make_room(path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Room:
    monkeypatch.setattr(decoder, "select_sampler", TritonSampler)
    kernel = TritonAttention(2, 32, torch.float32, device, part_keys=64)
    return Room(path, kernel=kernel, device=device)


@pytest.fixture
def captured(path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Room:
    return make_room(path, monkeypatch, device)


def unlike_images(terminated: bool) -> dict[str, PreparedImage]:
    """Windows 1, 4 and C, options, guidance, adaptive, drafts."""
    return {
        "greedy": make_image(terminated, 2, 4, window=1, **GUIDED),
        "sampled": make_image(terminated, 3, 4, window=4, seed=1, prompt=LONG, **SAMPLED),
        "guided": make_image(terminated, 1, 4, window=4, seed=2, top_k=20, **GUIDED, **SAMPLED),
        "adaptive": make_image(terminated, 3, 3, window=1, policy=ADAPTIVE, **GUIDED, **SAMPLED),
        "drafted": make_image(terminated, 3, 3, window=2, drafts=1, seed=4, **SAMPLED),
        "again": make_image(terminated, 2, 4, window=2, seed=5, min_p=0.05, **SAMPLED),
    }


def draw(room: Room, images: dict[str, PreparedImage]) -> None:
    """Images come, end and are aborted."""
    for name, image in images.items():
        room.add(name, image)
        if name == "drafted":
            room.abort("sampled")
        room.step()
    room.run()


def assert_expected(room: Room, path: Path, images: dict[str, PreparedImage]) -> None:
    assert room.results.keys() == images.keys() - {"sampled"}
    for name, found in room.results.items():
        tokens, steps = expected(path, room.vocabulary, images[name])
        assert found.tokens == tokens, name
        assert found.steps <= steps  # fewer with drafts
        assert_diverse(tokens)


def test_any_batch_as_if_it_was_not_captured(
    captured: Room, graphs: Graphs, path: Path, terminated: bool
) -> None:
    room, images = captured, unlike_images(terminated)
    with graphs() as replayed:
        room.capture([8, 16, 24])
        assert not replayed
        draw(room, images)
    assert len({id(graph) for graph in replayed}) > 1
    assert_expected(room, path, images)


@pytest.mark.gpu
def test_the_same_batch_launched_one_by_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, terminated: bool
) -> None:
    """Says, where the test above fails on a GPU, whether it is the capture that is wrong."""
    room, images = make_room(path, monkeypatch, torch.device("cuda")), unlike_images(terminated)
    with cuda_graphs() as replayed:
        draw(room, images)
    assert not replayed
    assert_expected(room, path, images)


def test_prompts_and_decoding_are_replayed_but_not_scores(
    captured: Room, graphs: Graphs, terminated: bool
) -> None:
    """What wants log-probabilities is run operation by operation, and so is a wide step."""
    with graphs() as replayed:
        captured.capture([8])
        plain = make_image(terminated, 1, 3)
        captured.generate(plain)
        assert len(replayed) == 3
        captured.generate(plain, logprobs=True)
        captured.generate(make_image(terminated, 1, 3, prompt=LONG))
        assert len(replayed) == 3 + 2


def test_operators_in_python_are_recorded_by_what_they_call() -> None:
    """As vLLM's attention is one: what its Python does beside that is not done again."""
    factors = [2.0]

    def scale(x: torch.Tensor) -> None:
        x.mul_(factors[-1])

    library = torch.library.Library("zipar_tests", "FRAGMENT")
    library.define("scale(Tensor(a!) x) -> ()")
    library.impl("scale", scale, "CPU")
    with recorded_graphs(), torch.inference_mode():
        graph, x = torch.cuda.CUDAGraph(), torch.ones(3)
        with torch.cuda.graph(graph):
            torch.ops.zipar_tests.scale(x)
            y = x + 1
        factors.append(7.0)
        x.fill_(5)
        graph.replay()
    assert y.tolist() == [11.0] * 3


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda x, i: x[i].sum().item(),
        lambda x, i: x.tolist(),
        lambda x, i: x.__setitem__(i, True),
        lambda x, i: x[x > 0],
        lambda x, i: i.nonzero(),
        lambda x, i: torch.tensor([1.0]),
        lambda x, i: x.to("cpu", non_blocking=True),
    ],
)
def test_what_needs_the_host_is_refused(forbidden: Any) -> None:
    x, i = torch.ones(3), torch.arange(2)
    with (
        recorded_graphs(),
        pytest.raises(NotCapturedError),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        forbidden(x, i)
