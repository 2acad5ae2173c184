"""The contract, through the OpenAI client and plain HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError
from PIL import Image

from server.options import ServerOptions
from server.schemas import UNSUPPORTED
from tests.fakes import FakeEngine, FakeModel
from zipar_vllm.errors import EngineUnavailableError, ImageTooLargeError
from zipar_vllm.models.base import Prompts

from .conftest import post_raw

URL = "/v1/images/generations"


def open_image(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


async def test_a_picture_of_the_size_asked(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    answer = await openai.images.generate(
        model="fake",
        prompt="red apple",
        size="32x32",
        extra_body={"seed": 5, "zipar": {"window": 3}, "guidance_scale": 1},
    )
    image = open_image(answer.data[0].b64_json)
    assert (image.format, image.size) == ("PNG", (32, 32))
    assert image.getpixel((0, 0)) == (50, 50, 50)
    assert answer.size == "32x32"
    assert answer.output_format == "png"
    assert answer.usage.input_tokens == 4
    assert answer.usage.output_tokens == 16
    assert answer.usage.total_tokens == 20
    assert answer.zipar["steps"] == 99
    assert answer.zipar["window"] == 3
    assert answer.zipar["seconds"]["queue"] == 0.25
    (image,) = engine.images
    assert image.prompts == Prompts([1, 0, 1, 2], [])
    assert (image.params.window, image.params.seed) == (3, 5)


async def test_the_adaptive_window_is_asked_for_and_reported(
    openai: AsyncOpenAI, engine: FakeEngine
) -> None:
    zipar = {"window": 3, "adaptive": True}
    answer = await openai.images.generate(prompt="x", extra_body={"zipar": zipar})
    params = engine.images[0].params
    assert (params.window, params.policy) == (3, "adaptive_window")
    assert {name: answer.zipar[name] for name in zipar} == zipar


@pytest.mark.parametrize("drafts", [0, 8, "auto"])
async def test_drafts_are_asked_for_and_reported(
    openai: AsyncOpenAI, engine: FakeEngine, drafts: int | str
) -> None:
    answer = await openai.images.generate(prompt="x", extra_body={"zipar": {"drafts": drafts}})
    assert engine.images[0].params.drafts == drafts
    assert answer.zipar["drafts"] == drafts
    assert answer.zipar.get("accepted_drafts") == (0.5 if drafts else None)


async def test_defaults_are_the_models(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    answer = await openai.images.generate(prompt="red apple")
    assert answer.zipar["adaptive"] is False
    assert open_image(answer.data[0].b64_json).size == (64, 48)
    params = engine.images[0].params
    assert (params.window, params.guidance_scale, params.temperature) == (4, 2.0, 0.5)
    assert (params.top_k, params.top_p) == (5, 1.0)
    assert engine.images[0].prompts.unconditional == [1, 2]


async def test_image_k_has_seed_plus_k(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    answer = await openai.images.generate(prompt="x", n=3, extra_body={"seed": 10})
    assert [d.seed for d in answer.data] == [10, 11, 12]
    assert sorted(image.params.seed for image in engine.images) == [10, 11, 12]
    again = await openai.images.generate(prompt="x", extra_body={"seed": 11})
    assert again.data[0].b64_json == answer.data[1].b64_json
    assert len(set(engine.request_ids)) == 4  # ids never repeat


async def test_every_image_may_have_a_seed_of_its_own(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for body in ({"n": 3, "seed": [7, 1, 7]}, {"seed": [7, 1, 7]}):
        answer = (await http.post(URL, json={"prompt": "x", **body})).json()
        assert [image["seed"] for image in answer["data"]] == [7, 1, 7]
        assert [image.params.seed for image in engine.images[-3:]] == [7, 1, 7]


@pytest.mark.parametrize("field", sorted(UNSUPPORTED))
async def test_what_would_change_the_picture_is_refused_by_name(
    http: httpx.AsyncClient, engine: FakeEngine, field: str
) -> None:
    for empty in (None, "auto", "", []):
        assert (await http.post(URL, json={"prompt": "x", field: empty})).status_code == 200
    engine.images.clear()
    answer = await http.post(URL, json={"prompt": "x", field: "y" * 100})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (field, "unsupported")
    assert UNSUPPORTED[field] in error["message"]
    assert not engine.images


async def test_a_seed_is_drawn_and_returned(openai: AsyncOpenAI, engine: FakeEngine) -> None:
    first = await openai.images.generate(prompt="x")
    second = await openai.images.generate(prompt="x")
    assert first.data[0].seed == engine.images[0].params.seed
    assert first.data[0].seed != second.data[0].seed


@pytest.mark.parametrize(
    "fields",
    [
        {"size": "auto", "quality": "auto", "background": "auto", "moderation": "auto"},
        {"size": None, "n": None, "seed": None, "zipar": None, "stream": None, "user": None},
        {"unknown": {"deep": [1]}, "style": "vivid", "user": "me", "quality": "hd"},
        {"zipar": {"window": "auto"}, "response_format": "b64_json", "output_format": "png"},
        {"cfg_scale": 3.5, "negative_prompt": "blue"},
    ],
)
async def test_accepted(http: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    answer = await http.post(URL, json={"prompt": "x", **fields})
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["b64_json"]


@pytest.mark.parametrize(
    ("fields", "param", "allowed"),
    [
        ({"size": "33x33"}, "size", "auto or 64x48 or 32x32"),
        ({"n": 0}, "n", "1 to 10"),
        ({"n": 11}, "n", "1 to 10"),
        ({"n": "many"}, "n", "whole number"),
        ({"n": 2, "stream": True}, "n", "1 with stream"),
        ({"prompt": ""}, "prompt", "1 to 32000"),
        ({"prompt": "  \n"}, "prompt", "not blank"),
        ({"prompt": None}, "prompt", "text"),
        ({"prompt": "y" * 40_000}, "prompt", "32000"),
        ({"prompt": "y " * 60}, "prompt", "up to 50 tokens"),
        ({"negative_prompt": "y " * 60}, "negative_prompt", "up to 50 tokens"),
        ({"zipar": {"window": 0}}, "zipar.window", "1 to 8"),
        ({"zipar": {"window": 9}}, "zipar.window", "1 to 8"),
        ({"zipar": {"window": "wide"}}, "zipar.window", "whole number"),
        ({"zipar": {"adaptive": 1}}, "zipar.adaptive", "true or false"),
        ({"zipar": {"timeout": 0}}, "zipar.timeout", "0"),
        ({"zipar": {"drafts": 65}}, "zipar.drafts", "a whole number, 0 to 64 or auto"),
        ({"zipar": {"drafts": "many"}}, "zipar.drafts", "a whole number, 0 to 64 or auto"),
        (
            {"zipar": {"drafts": 4, "adaptive": True}},
            "zipar.drafts",
            "0 with policy adaptive_window",
        ),
        ({"background": "transparent"}, "background", "auto or opaque"),
        ({"output_format": "gif"}, "output_format", "png or webp or jpeg"),
        ({"output_format": "svg"}, "output_format", "png or webp or jpeg"),
        ({"output_compression": 50}, "output_compression", "webp or jpeg"),
        ({"output_compression": 101, "output_format": "jpeg"}, "output_compression", "0 to 100"),
        ({"response_format": "url"}, "response_format", "b64_json"),
        ({"partial_images": 4, "stream": True}, "partial_images", "0 to 3"),
        ({"quality": "best"}, "quality", "low or medium"),
        ({"temperature": "hot"}, "temperature", "0 to 10"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"seed": -1}, "seed", "whole number"),
        ({"seed": [1, -1]}, "seed", "a list of 1 to 10"),
        ({"seed": []}, "seed", "a list of 1 to 10"),
        ({"seed": [1, 2], "n": 3}, "seed", "3: one per image"),
        ({"seed": [1, 2], "stream": True}, "n", "1 with stream"),
        ({"seed": 2**63 - 1, "n": 2}, "seed", "up to"),
        ({"cfg_scale": -2}, "cfg_scale", "0 to 100"),
    ],
)
async def test_refused_by_name(
    openai: AsyncOpenAI, engine: FakeEngine, fields: dict[str, Any], param: str, allowed: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        await openai.post("/images/generations", body={"prompt": "x", **fields}, cast_to=object)
    body = caught.value.body
    assert body["param"] == param
    assert body["message"].startswith(f"{param}: got ")
    assert allowed in body["message"]
    assert body["type"] == "invalid_request_error"
    assert len(body["message"]) < 300
    assert not engine.images


@pytest.mark.parametrize("body", [b"{bad", b"[1]", b"\xff\xfe", b"", b"[" * 100_000])
async def test_a_body_that_is_no_request(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post(URL, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_body_that_is_too_large(http: httpx.AsyncClient) -> None:
    answer = await http.post(URL, content=b" " * (2 << 20))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(("name", "kind"), [("webp", "WEBP"), ("jpeg", "JPEG")])
async def test_formats(openai: AsyncOpenAI, name: Any, kind: str) -> None:
    answer = await openai.images.generate(prompt="x", output_format=name, output_compression=40)
    assert open_image(answer.data[0].b64_json).format == kind
    assert answer.output_format == name


@pytest.mark.parametrize("route", ["edits", "variations"])
async def test_edits_and_variations_are_unsupported(http: httpx.AsyncClient, route: str) -> None:
    answer = await http.post(f"/v1/images/{route}", files={"image": b"png"})
    assert answer.status_code == 501
    assert "not supported" in answer.json()["error"]["message"]


async def test_models_say_what_they_offer_and_no_path(openai: AsyncOpenAI) -> None:
    facts = (await openai.models.list()).data[0].model_dump()
    assert "secret" not in str(facts)
    assert facts["zipar"]["sizes"] == ["64x48", "32x32"]
    assert facts["zipar"]["defaults"]["window"] == 4
    assert facts["zipar"]["concepts"] == ["apple"]
    limits = facts["zipar"]["limits"]
    assert (limits["n"], limits["partial_images"]) == (10, 3)
    assert (limits["prompt_tokens"], limits["active_images"]) == (50, 256)
    assert facts["zipar"]["options"]["temperature"] == {"min": 0, "max": 10}
    assert facts["zipar"]["policies"] == ["fixed_window", "adaptive_window"]


class TestLimits:
    @pytest.fixture
    def options(self) -> ServerOptions:
        return ServerOptions(max_active_images=2, image_timeout=0.2)

    async def test_overload_is_told_at_once_and_passes(
        self, http: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        engine.hold_at = 1
        waiting = asyncio.create_task(http.post(URL, json={"prompt": "x", "n": 2}))
        while len(engine.images) < 2:
            await asyncio.sleep(0)
        refused = await http.post(URL, json={"prompt": "x"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "overloaded"
        engine.gate.set()
        assert (await waiting).status_code == 200
        assert (await http.post(URL, json={"prompt": "x"})).status_code == 200

    async def test_deadline(self, http: httpx.AsyncClient, engine: FakeEngine) -> None:
        engine.hold_at = 3
        answer = await http.post(URL, json={"prompt": "x"})
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        assert engine.closed == engine.request_ids


class TestNearestSize:
    @pytest.fixture
    def options(self) -> ServerOptions:
        return ServerOptions(nearest_size=True)

    async def test_it_is_drawn_and_told(self, http: httpx.AsyncClient) -> None:
        answer = (await http.post(URL, json={"prompt": "x", "size": "1024x1024"})).json()
        assert answer["size"] == "32x32"
        picture = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
        assert picture.size == (32, 32)

    async def test_what_is_no_size_is_refused_as_ever(self, http: httpx.AsyncClient) -> None:
        answer = await http.post(URL, json={"prompt": "x", "size": "large"})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "size"


async def test_a_request_may_set_a_deadline_of_its_own(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.hold_at = 3
    answer = await http.post(URL, json={"prompt": "x", "zipar": {"timeout": 0.1}})
    assert answer.status_code == 504
    assert "0.1 s" in answer.json()["error"]["message"]
    assert engine.closed == engine.request_ids


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (EngineUnavailableError("draining"), 503, True),
        (EngineUnavailableError("died", dead=True), 500, False),
        (RuntimeError("/secret/path exploded"), 500, False),
        (ImageTooLargeError("needs 10 blocks"), 400, False),
    ],
)
async def test_engine_failures(
    http: httpx.AsyncClient, engine: FakeEngine, error: Exception, status: int, retry: bool
) -> None:
    engine.hold_at, engine.error = 2, error
    answer = await http.post(URL, json={"prompt": "x", "n": 2})
    assert answer.status_code == status
    assert ("retry-after" in answer.headers) is retry
    assert "secret" not in answer.text
    assert isinstance(answer.json()["error"]["message"], str)
    assert sorted(engine.closed) == sorted(engine.request_ids)


async def test_disconnect_closes_the_engines_stream(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """A client that goes away is an ``http.disconnect`` message behind the body."""
    engine.hold_at = 3
    _, leave, task = post_raw(http, b'{"prompt": "x", "n": 2}')
    while engine.steps_taken < 4:
        await asyncio.sleep(0)
    assert engine.closed == []
    leave.set()
    await asyncio.wait_for(task, 5)
    assert len(engine.closed) == 2
    assert http.app.state.zipar_images.admission.active == 0  # type: ignore[attr-defined]


class TestStorage:
    @pytest.fixture
    def options(self, tmp_path: Any) -> ServerOptions:
        return ServerOptions(storage_dir=str(tmp_path), storage_seconds=60)

    async def test_url_serves_the_picture_until_it_expires(
        self, http: httpx.AsyncClient, tmp_path: Any
    ) -> None:
        import os

        answer = await http.post(URL, json={"prompt": "x", "response_format": "url"})
        url = answer.json()["data"][0]["url"]
        assert url.startswith("http://test/images/")
        picture = await http.get(url)
        assert picture.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(picture.content)).size == (64, 48)
        (stored,) = tmp_path.iterdir()
        os.utime(stored, (0, 0))
        assert (await http.get(url)).status_code == 404
        await http.post(URL, json={"prompt": "x", "response_format": "url"})
        assert stored not in list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["..%2Fpyproject.toml", "a.png", "x" * 32 + ".exe"])
    async def test_other_names_are_not_found(self, http: httpx.AsyncClient, name: str) -> None:
        assert (await http.get(f"/images/{name}")).status_code == 404


async def test_pictures_ready_together_are_drawn_together(
    openai: AsyncOpenAI, model: FakeModel
) -> None:
    await asyncio.gather(*(openai.images.generate(prompt="x", n=4) for _ in range(4)))
    assert sum(model.batches) == 16
    assert max(model.batches) > 1
