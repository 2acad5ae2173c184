"""Janus-Pro over HTTP, by a hub id from an offline cache, as a user has it who downloaded it."""

from __future__ import annotations

import base64
import io
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints.janus import load_oracle, make_janus
from tests.hub import put_into_cache
from zipar_vllm.models.registry import load_image_model

from .conftest import Server, start_server

pytestmark = pytest.mark.live

MODEL = "somebody/Janus-Pro-1B"
OPTIONS = [
    *("--dtype", "float32"),
    *("--max-model-len", "1024"),
    *("--kv-cache-memory-bytes", str(32 << 20)),
    "--enforce-eager",
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("janus") / "checkpoint"
    make_janus(path)
    return path


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Server]:
    put_into_cache(path, MODEL, path.parent / "hub")
    server = start_server(
        path.parent / "server.log",
        *OPTIONS,
        "--nearest-size",
        model=MODEL,
        environment={"HF_HUB_CACHE": str(path.parent / "hub"), "HF_HUB_OFFLINE": "1"},
    )
    yield server
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(90) == 0, server.log.read_text()[-2000:]


def post(server: Server, **fields: Any) -> httpx.Response:
    url = f"{server.url}/v1/images/generations"
    return httpx.post(url, json={"prompt": "a red apple", **fields}, timeout=60)


def pixels(answer: httpx.Response) -> np.ndarray[Any, Any]:
    file = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(file)))


def test_it_says_what_it_offers(server: Server) -> None:
    models = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert models[0]["id"] == MODEL
    facts = models[0]["zipar"]
    assert (facts["family"], facts["sizes"]) == ("janus-pro", ["128x128"])
    assert facts["defaults"]["guidance_scale"] == 5.0


def test_a_default_request_and_its_seed_again(server: Server) -> None:
    first, again, other = (post(server, seed=seed) for seed in (1, 1, 2))
    answer = first.json()
    assert (answer["size"], answer["zipar"]["window"]) == ("128x128", 2)
    assert answer["zipar"]["steps"] == 8 + 7 * 2
    assert answer["usage"]["output_tokens"] == 64
    assert np.array_equal(pixels(first), pixels(again))
    assert not np.array_equal(pixels(first), pixels(other))


def test_a_greedy_picture_is_transformers(server: Server, path: Path) -> None:
    prompt = load_image_model(path).prompts("a red apple", None, None, guided=False)  # type: ignore[arg-type]
    ids = torch.tensor([prompt.conditional])
    oracle = load_oracle(path)
    mask = torch.ones_like(ids)
    options: dict[str, Any] = {"do_sample": False, "guidance_scale": 5.0, "attention_mask": mask}
    codes = oracle.generate(ids, generation_mode="image", **options)
    with torch.no_grad():
        expected = (oracle.decode_image_tokens(codes)[0].clamp(-1, 1) + 1) * 127.5
    got = pixels(post(server, temperature=0.0, zipar={"window": 8}))
    assert np.abs(got - expected.numpy()).max() < 0.51


def test_a_negative_prompt_and_another_guidance_change_it(server: Server) -> None:
    plain, negative, unguided = (
        pixels(post(server, seed=1, **fields))
        for fields in ({}, {"negative_prompt": "blurred"}, {"guidance_scale": 1.0})
    )
    assert not np.array_equal(plain, negative)
    assert not np.array_equal(plain, unguided)


def test_streaming_with_partial_images(server: Server) -> None:
    answer = post(server, seed=1, stream=True, partial_images=2)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:5] == "data:"]
    kinds = [event["type"].rpartition(".")[2] for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert events[-1]["b64_json"] == post(server, seed=1).json()["data"][0]["b64_json"]


def test_other_sizes_are_the_nearest(server: Server) -> None:
    answer = post(server, size="1024x1024")
    assert answer.json()["size"] == "128x128"
    assert pixels(answer).shape == (128, 128, 3)
