"""The real server, the real engine, the real client, the embedded model."""

from __future__ import annotations

import base64
import io
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai import BadRequestError, OpenAI
from PIL import Image

from .conftest import ZIPAR, Server

pytestmark = pytest.mark.live

SIZE = (192, 192)


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def pixels(data: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def generate(client: OpenAI, prompt: str, **extra: Any) -> Any:
    return client.images.generate(prompt=prompt, size="192x192", extra_body=extra)


def test_a_prompt_becomes_a_png(client: OpenAI) -> None:
    answer = generate(client, "red apple", seed=7, zipar={"window": 4})
    raw = base64.b64decode(answer.data[0].b64_json)
    image = Image.open(io.BytesIO(raw))
    assert (image.format, image.size) == ("PNG", SIZE)
    assert np.asarray(image.convert("RGB")).std() > 5  # not one flat colour
    assert answer.zipar["steps"] == 24 + 23 * 4
    assert answer.usage.output_tokens == 576


@pytest.mark.parametrize("window", [8, 24])
def test_steps_are_the_windows(client: OpenAI, window: int) -> None:
    answer = generate(client, "pizza", seed=1, zipar={"window": window})
    assert answer.zipar["steps"] == 24 + 23 * window


def test_adaptive_rows_wait_until_they_are_settled(client: OpenAI) -> None:
    zipar = {"window": 2, "adaptive": True}
    answer = generate(client, "pizza", seed=1, zipar=zipar)
    assert {name: answer.zipar[name] for name in zipar} == zipar
    assert 24 + 23 * 3 <= answer.zipar["steps"] < 24 + 23 * 24
    again = generate(client, "pizza", seed=1, zipar=zipar)
    assert again.data[0].b64_json == answer.data[0].b64_json


def test_seeds(client: OpenAI) -> None:
    first = generate(client, "sunflower", seed=3, temperature=1.0)
    again = generate(client, "sunflower", seed=3, temperature=1.0)
    other = generate(client, "sunflower", seed=4, temperature=1.0)
    assert first.data[0].b64_json == again.data[0].b64_json
    assert first.data[0].b64_json != other.data[0].b64_json


@pytest.mark.parametrize("prompt", ["pizza", "panda", "red apple", "house"])
def test_ten_seeds_give_at_least_nine_pictures(client: OpenAI, prompt: str) -> None:
    answer = client.images.generate(prompt=prompt, n=10, extra_body={"seed": 1})
    assert len({image.b64_json for image in answer.data}) >= 9


def test_a_prompt_it_does_not_know(client: OpenAI) -> None:
    answer = generate(client, "Ünïcode 漢字 quantum chromodynamics 🚀")
    assert pixels(answer.data[0].b64_json).shape == (*SIZE, 3)


def test_streaming(client: OpenAI) -> None:
    events = list(client.images.generate(prompt="house", stream=True, partial_images=2))
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    first, last = (pixels(event.b64_json).astype(int) for event in (events[0], events[-1]))
    assert np.abs(first - last)[:40].mean() < 3  # what is decoded stays, but for its lower edge
    assert (first[-8:] == 128).all()  # the rest is neutral


def test_many_at_once_all_answered(client: OpenAI) -> None:
    def one(seed: int) -> str:
        return generate(client, "cat face", seed=seed, zipar={"window": 1 + seed}).data[0].b64_json

    with ThreadPoolExecutor(12) as pool:
        pictures = list(pool.map(one, range(12)))
    assert all(pixels(p).shape == (*SIZE, 3) for p in pictures)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "64x64"}, "size"),
        ({"n": 0}, "n"),
        ({"prompt": ""}, "prompt"),
        ({"n": "two"}, "n"),
        ({"zipar": {"window": 0}}, "zipar.window"),
        ({"zipar": {"window": 25}}, "zipar.window"),
        ({"prompt": "x" * 40_000}, "prompt"),
    ],
)
def test_bad_input_is_a_400_that_names_the_field(
    client: OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.post("/images/generations", body={"prompt": "x", **fields}, cast_to=object)
    assert caught.value.body["param"] == param
    assert "allowed" in caught.value.body["message"]


def test_models_and_metrics(client: OpenAI, server: Server) -> None:
    models = client.models.list().data
    assert {m.id for m in models} == {"zipar-demo", "gpt-image-1"}
    facts = models[0].model_dump()["zipar"]
    assert facts["sizes"] == ["192x192"]
    assert "red apple" in facts["concepts"]
    generate(client, "panda")
    assert server.metric("zipar:images_finished_total") >= 1
    assert server.metric("zipar:image_steps_count") >= 1


def wait_until_idle(server: Server, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        running = server.metric("vllm:num_requests_running")
        if running == 0 and server.metric("vllm:kv_cache_usage_perc") == 0:
            return
        time.sleep(0.1)
    raise AssertionError("the engine still holds requests or KV blocks")


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_frees_the_engine(server: Server, client: OpenAI, stream: bool) -> None:
    body = {"prompt": "x", "n": 1, "zipar": {"window": 24}, "stream": stream}
    before = server.metric("zipar:images_failed_total") if _has_failed(server) else 0
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=0.3)
    wait_until_idle(server)
    assert server.metric("zipar:images_failed_total") == before + 1
    assert generate(client, "bee").data[0].b64_json


def _has_failed(server: Server) -> bool:
    return "zipar:images_failed_total{" in httpx.get(f"{server.url}/metrics").text


def test_generate_without_a_server(tmp_path: Path, server: Server) -> None:
    """After the server's tests, so that the two do not load the machine together."""
    target = tmp_path / "out.png"
    command = [str(ZIPAR), "generate", "red apple", "-o", str(target), "--window", "4"]
    result = subprocess.run([*command, "--seed", "7"], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    with Image.open(target) as picture:
        assert picture.size == SIZE
    assert "window 4, 116 steps" in result.stdout
    assert "24/24" in result.stderr  # the progress bar reached the last row
    bad = subprocess.run([*command, "--window", "99"], capture_output=True, text=True, timeout=600)
    assert bad.returncode == 2
    assert "window: got 99, allowed is 1 to 24" in bad.stderr
