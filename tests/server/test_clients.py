"""What other programs send is understood, and the answer has what they read.

Their requests were recorded, as the programs are too large to install for a test; LiteLLM's is
compared with the program itself where that is there (``pip install litellm==1.110.2``).
"""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from PIL import Image

from tests.fakes import FakeEngine

URL = "/v1/images/generations"
# What LiteLLM 1.110.2 is asked for, and the body that it sends. It passes on fields it does not
# know, seed among them, but not response_format, which it refuses for all models but its own.
LITELLM_ASKED = {
    "prompt": "red apple",
    "n": 2,
    "size": "32x32",
    "seed": 7,
    "negative_prompt": "dogs",
    "guidance_scale": 3.0,
    "zipar": {"window": 2},
}
LITELLM_SENDS = {"model": "fake", **LITELLM_ASKED}


def size_of(image: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(image))).size


def assert_as_asked(engine: FakeEngine) -> None:
    """The images that :data:`LITELLM_ASKED` wants are those that were drawn."""
    params = [image.params for image in engine.images]
    assert [(p.seed, p.window, p.guidance_scale) for p in params] == [(7, 2, 3.0), (8, 2, 3.0)]
    assert all(len(image.prompts.unconditional) == 3 for image in engine.images)


async def test_litellm(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    answer = await http.post(URL, json=LITELLM_SENDS)
    assert answer.status_code == 200
    images = answer.json()["data"]
    assert [size_of(image["b64_json"]) for image in images] == [(32, 32)] * 2
    assert_as_asked(engine)


@pytest.mark.filterwarnings("ignore")  # LiteLLM's own
async def test_litellm_itself_sends_that(
    http: httpx.AsyncClient,
    openai: AsyncOpenAI,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask the network
    litellm = pytest.importorskip("litellm")
    sent: list[Any] = []

    async def keep(request: httpx.Request) -> None:
        sent.append(json.loads(await request.aread()))

    http.event_hooks["request"].append(keep)
    answer = await litellm.aimage_generation(model="openai/fake", client=openai, **LITELLM_ASKED)
    assert sent == [LITELLM_SENDS]
    assert [size_of(image.b64_json) for image in answer.data] == [(32, 32)] * 2
    assert answer.usage.output_tokens == 32
    assert_as_asked(engine)


# From open-webui's backend/open_webui/routers/images.py, at commit 02530d5: response_format unless
# the model is called gpt-image-..., the size from its settings (or "auto"), and whatever table of
# parameters an administrator has given, which is how a seed or a window gets there.
OPEN_WEBUI_SENDS = {
    "another model": {
        "model": "fake",
        "prompt": "red apple",
        "n": 1,
        "size": "32x32",
        "response_format": "b64_json",
    },
    "gpt-image": {"model": "gpt-image-1", "prompt": "red apple", "n": 1, "size": "auto"},
    "its parameters": {
        "model": "gpt-image-1",
        "prompt": "red apple",
        "n": 2,
        **{"seed": 7, "guidance_scale": 1, "zipar": {"window": 2}},
    },
}


@pytest.mark.parametrize("name", OPEN_WEBUI_SENDS)
async def test_open_webui(http: httpx.AsyncClient, engine: FakeEngine, name: str) -> None:
    """It reads ``url`` if there is one, else ``b64_json``, which it takes to be a PNG."""
    body = OPEN_WEBUI_SENDS[name]
    headers = {"Authorization": "Bearer key"}
    answer = await http.post(f"{URL}?api-version=1", json=body, headers=headers)
    assert answer.status_code == 200
    images = answer.json()["data"]
    expected = (32, 32) if name == "another model" else (64, 48)
    assert [size_of(image["b64_json"]) for image in images] == [expected] * int(str(body["n"]))
    assert all("url" not in image for image in images)
    assert all(base64.b64decode(image["b64_json"]).startswith(b"\x89PNG") for image in images)
    if name == "its parameters":
        params = [image.params for image in engine.images]
        assert [(p.seed, p.window, p.guidance_scale) for p in params] == [(7, 2, 1.0), (8, 2, 1.0)]


async def test_open_webui_s_edits_are_refused_in_words(http: httpx.AsyncClient) -> None:
    files = {"image": ("x.png", b"\x89PNG", "image/png")}
    answer = await http.post("/v1/images/edits", data={"prompt": "x"}, files=files)
    assert answer.status_code == 501
    assert "draws pictures from text only" in answer.json()["error"]["message"]
