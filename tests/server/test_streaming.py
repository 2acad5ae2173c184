"""Partial pictures come while the image is decoded, spread as asked, and then the whole one."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from contextlib import aclosing
from functools import partial
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from PIL import Image
from prometheus_client import REGISTRY

from server import streaming
from server.access_log import AccessRecord
from server.options import ServerOptions
from server.pixels import NEUTRAL
from server.schemas import ImageGenerationRequest
from server.service import ImageService
from server.streaming import rows_of_partials, stream_events, with_keep_alive
from tests.fakes import FakeEngine
from zipar_vllm.errors import EngineUnavailableError

from .conftest import post_raw

URL = "/v1/images/generations"


@pytest.mark.parametrize(
    ("count", "rows", "due"),
    [(0, 6, []), (1, 6, [3]), (2, 6, [2, 4]), (3, 24, [6, 12, 18]), (3, 2, [1])],
)
def test_partials_spread_evenly(count: int, rows: int, due: list[int]) -> None:
    assert rows_of_partials(count, rows) == due


@pytest.mark.parametrize("rows_at_once", [1, 3, 6])
async def test_events(openai: AsyncOpenAI, engine: FakeEngine, rows_at_once: int) -> None:
    engine.rows_at_once = rows_at_once  # an engine may be ahead of the pixels
    stream = await openai.images.generate(
        prompt="x", stream=True, partial_images=2, extra_body={"seed": 5}
    )
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    heights = []
    for event in events:
        picture = Image.open(io.BytesIO(base64.b64decode(event.b64_json)))
        column = [picture.getpixel((0, y))[0] for y in range(48)]
        heights.append(column.index(NEUTRAL) if NEUTRAL in column else 48)
    assert heights == [16, 32, 48]
    assert events[-1].usage.output_tokens == 48
    assert events[-1].seed == 5
    assert events[-1].zipar["steps"] == 99


async def test_no_partials_unless_asked(openai: AsyncOpenAI) -> None:
    stream = await openai.images.generate(prompt="x", stream=True)
    assert [event.type async for event in stream] == ["image_generation.completed"]


async def test_first_partial_arrives_while_the_engine_still_decodes(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """By engine step, not by time: the event is out before the engine may go on."""
    engine.hold_at = 4
    events = stream_events(*job_of(http), 2, AccessRecord("id"))
    first = await anext(events)
    assert "partial_image" in first
    assert engine.steps_taken < 4
    engine.gate.set()
    rest = [event async for event in events]
    assert len(rest) == 2


def active(http: httpx.AsyncClient) -> int:
    """Images in hand, by the server's books, which the metric has to repeat."""
    count = http.app.state.zipar_images.admission.active  # type: ignore[attr-defined]
    assert REGISTRY.get_sample_value("zipar:images_active") == count
    return count


def job_of(http: httpx.AsyncClient) -> Any:
    service: ImageService = http.app.state.zipar_images  # type: ignore[attr-defined]
    return service, service.prepare(ImageGenerationRequest(prompt="x"))


@pytest.mark.parametrize(
    ("error", "status"), [(EngineUnavailableError("draining"), 503), (RuntimeError("bug"), 500)]
)
async def test_a_failure_before_the_first_event_is_a_status(
    http: httpx.AsyncClient, engine: FakeEngine, error: Exception, status: int
) -> None:
    engine.hold_at, engine.error = 1, error
    answer = await http.post(URL, json={"prompt": "x", "stream": True})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "server_error"
    assert ("retry-after" in answer.headers) is (status == 503)


async def test_a_failure_after_the_first_event_is_an_event(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.hold_at, engine.error = 4, EngineUnavailableError("draining")
    answer = await http.post(URL, json={"prompt": "x", "stream": True, "partial_images": 1})
    assert answer.status_code == 200
    blocks = [block for block in answer.text.split("\n\n") if block]
    data = [json.loads(block.split("data: ")[1]) for block in blocks]
    assert [d["type"] for d in data] == ["image_generation.partial_image", "error"]
    assert data[-1]["error"]["code"] == "unavailable"


async def test_keep_alives_while_nothing_comes() -> None:
    gate = asyncio.Event()

    async def slow() -> Any:
        await gate.wait()
        yield "item"

    seen: list[Any] = []
    async for item in with_keep_alive(slow(), seconds=0.01, first_seconds=0.01):
        seen.append(item)
        if len(seen) == 3:
            gate.set()
    assert seen[:3] == [None, None, None]
    assert seen[-1] == "item"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first keep-alive comes soon."""
    quick = partial(with_keep_alive, first_seconds=0.01)
    monkeypatch.setattr(streaming, "with_keep_alive", quick)


@pytest.mark.usefixtures("impatient")
async def test_keep_alives_tell_how_many_are_ahead(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """Here two of a request that is not streamed; when they are given up, nobody is."""
    service, request = job_of(http)
    engine.hold_at = 0
    others = service.prepare(ImageGenerationRequest(prompt="x", n=2))
    ahead = asyncio.create_task(service.generate(others, ""))
    async with asyncio.timeout(5):
        while len(engine.images) < 2:
            await asyncio.sleep(0)
    async with aclosing(stream_events(service, request, 0, AccessRecord("id"))) as events:
        assert await anext(events) == ': {"queued": 2}\n\n'
    ahead.cancel()
    await asyncio.gather(ahead, return_exceptions=True)
    async with aclosing(stream_events(service, request, 0, AccessRecord("id"))) as events:
        assert await anext(events) == ': {"queued": 0}\n\n'


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("rows", [0, 3])
async def test_keep_alives_tell_the_rows_that_are_done(
    http: httpx.AsyncClient, engine: FakeEngine, rows: int
) -> None:
    engine.hold_at = rows + 1
    events = stream_events(*job_of(http), 0, AccessRecord("id"))
    assert await anext(events) == f': {{"rows": {rows}, "of": 6}}\n\n'
    engine.gate.set()
    assert len([event async for event in events]) == 1


async def test_closing_the_stream_closes_the_engines(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.hold_at = 4
    events = stream_events(*job_of(http), 3, AccessRecord("id"))
    await anext(events)
    await events.aclose()
    assert len(engine.closed) == 1


@pytest.mark.parametrize("hold_at", [1, 4])
async def test_a_client_that_leaves_frees_its_place(
    http: httpx.AsyncClient, engine: FakeEngine, hold_at: int
) -> None:
    """Before the first event, when nothing is sent yet, and behind it."""
    engine.hold_at = hold_at
    body = b'{"prompt": "x", "stream": true, "partial_images": 1}'
    sent, leave, task = post_raw(http, body)
    async with asyncio.timeout(5):
        while not engine.waiting or (hold_at > 1 and len(sent) < 2):
            await asyncio.sleep(0)
    assert active(http) == 1
    leave.set()
    await asyncio.wait_for(task, 5)
    assert len(engine.closed) == 1
    assert active(http) == 0


class TestDeadline:
    @pytest.fixture
    def options(self) -> ServerOptions:
        return ServerOptions(image_timeout=0.3)

    async def test_holds_behind_the_first_event(
        self, http: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        engine.hold_at = 4
        body = {"prompt": "x", "stream": True, "partial_images": 1}
        answer = await asyncio.wait_for(http.post(URL, json=body), 10)
        assert "deadline_exceeded" in answer.text
        assert len(engine.closed) == 1
