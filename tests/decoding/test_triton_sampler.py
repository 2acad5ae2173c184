"""Whole steps with the Triton sampler: the torch sampler's tokens, steps and scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cases import NEGATIVE, assert_diverse, make_image
from tests.interpreted import has_gpu
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.decoding import decoder, samples, select
from zipar_vllm.decoding.sampler import StepSampler
from zipar_vllm.decoding.select import select_sampler
from zipar_vllm.decoding.table import StateTable
from zipar_vllm.decoding.triton_sampler import TritonSampler
from zipar_vllm.models.registry import load_spec
from zipar_vllm.prepare import ADAPTIVE, PreparedImage

from .room import Decoded, Room

pytestmark = pytest.mark.slow

DEVICE = torch.device("cuda" if has_gpu() else "cpu")
GUIDED: dict[str, Any] = {"unconditional": NEGATIVE, "guidance_scale": 3.0}
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 11}


class Decode:
    """Decodes images that arrive one by one, with either sampler."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path, self._monkeypatch = path, monkeypatch
        self.vocabulary = load_spec(path).vocabulary

    def __call__(
        self,
        sampler: type[StepSampler],
        images: dict[str, PreparedImage],
        scored: tuple[str, ...] = (),
    ) -> dict[str, Decoded]:
        self._monkeypatch.setattr(decoder, "select_sampler", sampler)
        room = Room(self._path, device=DEVICE)
        for name, image in images.items():
            room.add(name, image, logprobs=name in scored)
            room.step()
        room.run()
        return room.results


@pytest.fixture
def decode(path: Path, monkeypatch: pytest.MonkeyPatch) -> Decode:
    return Decode(path, monkeypatch)


def test_any_batch(decode: Decode, terminated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows 1, 4 and C, all options, guided or not, adaptive, with drafts, scored, in parts."""
    monkeypatch.setattr(samples, "MAX_SAMPLES", 7)
    images = {
        "greedy": make_image(terminated, 3, 6, window=1, **GUIDED),
        "top-k": make_image(terminated, 3, 6, window=4, top_k=9, **SAMPLED),
        "top-p": make_image(terminated, 3, 6, window=6, top_p=0.8, **GUIDED, **SAMPLED),
        "min-p": make_image(terminated, 3, 5, window=2, min_p=0.05, **SAMPLED),
        "all": make_image(
            terminated, 4, 4, window=1, top_k=30, top_p=0.9, min_p=0.01, **GUIDED, **SAMPLED
        ),
        "adaptive": make_image(
            terminated, 4, 4, window=1, policy=ADAPTIVE, top_k=40, **GUIDED, **SAMPLED
        ),
        "drafted": make_image(terminated, 4, 4, window=2, drafts=2, **GUIDED, **SAMPLED),
        "plain": make_image(terminated, 4, 4, window=4, **SAMPLED),
    }
    scored = ("all", "adaptive", "drafted")
    expected = decode(StepSampler, images, scored)
    found = decode(TritonSampler, images, scored)
    for name, image in images.items():
        assert found[name].tokens == expected[name].tokens, name
        assert found[name].steps == expected[name].steps, name
        if image.params.temperature:
            assert_diverse(found[name].tokens)
    for name in scored:
        scores = (torch.tensor(drawn[name].scores) for drawn in (found, expected))
        torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5)


def test_a_finished_picture_is_scored(decode: Decode, terminated: bool) -> None:
    """Its tokens are given: none is drawn, beside one that is."""
    picture = (5, 0, 61, 7, 7, 30)
    images = {
        "given": replace(make_image(terminated, 2, 3), picture=picture),
        "drawn": make_image(terminated, 2, 3, window=1, **SAMPLED),
    }
    expected = decode(StepSampler, images, ("given",))
    found = decode(TritonSampler, images, ("given",))
    for name in images:
        assert found[name].tokens == expected[name].tokens
    assert tuple(decode.vocabulary.codes_of_picture(found["given"].tokens)) == picture
    scores = (torch.tensor(drawn["given"].scores) for drawn in (found, expected))
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5)


def _selected(device: str) -> type[StepSampler]:
    vocabulary = Vocabulary(32, 100)
    table = StateTable(2, 64, 16, vocabulary, torch.device("cpu"))
    return type(select_sampler(table, vocabulary, torch.device(device)))


def test_triton_serves_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert _selected("cuda") is TritonSampler


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_torch_serves_elsewhere(device: str) -> None:
    assert _selected(device) is StepSampler


def test_torch_serves_where_triton_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "find_spec", lambda name: None)
    assert _selected("cuda") is StepSampler


def test_torch_serves_older_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert _selected("cuda") is StepSampler
