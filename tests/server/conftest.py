"""The routes over a fake engine: what it is asked, and what it answers, is the test's to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from openai import AsyncOpenAI

from server.options import ServerOptions
from server.routes import router
from server.service import ImageService
from zipar_vllm.config import ImageParams
from zipar_vllm.core.grid import Grid
from zipar_vllm.models.base import ImageDefaults, ImageModelSpec, ImageTokens


@dataclass
class FakeProgress:
    codes: list[int]
    rows: int
    finished: bool
    steps: int | None = None
    queue_seconds: float | None = None


@dataclass
class FakeEngine:
    """Finishes a row a step; ``gate`` holds it before a row, ``error`` ends it there."""

    requests: list[tuple[str, list[int], list[int], ImageParams]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    hold_at: int | None = None
    error: Exception | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    steps_taken: int = 0
    waiting: bool = False

    async def generate(
        self, request_id: str, prompt_ids: list[int], unconditional_ids: list[int], params: Any
    ) -> AsyncGenerator[FakeProgress, None]:
        self.requests.append((request_id, prompt_ids, unconditional_ids, params))
        try:
            for row in range(1, params.rows + 1):
                await asyncio.sleep(0)
                if self.hold_at == row:
                    if self.error is not None:
                        raise self.error
                    self.waiting = True
                    await self.gate.wait()
                self.steps_taken += 1
                codes = [params.seed % 7] * (row * params.columns)
                last = row == params.rows
                yield FakeProgress(codes, row, last, 99 if last else None, 0.25)
        finally:
            self.closed.append(request_id)


class FakeModel:
    """Two sizes; every token draws a square of 8 x 8 pixels of its own grey."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.spec = ImageModelSpec(
            family="fake",
            tokens=ImageTokens(10, 16, 3),
            grids={"64x48": Grid(6, 8, True), "32x32": Grid(4, 4, True)},
            defaults=ImageDefaults(
                window=4, guidance_scale=2.0, temperature=0.5, top_k=5, top_p=1.0
            ),
            max_prompt_tokens=50,
            details={"concepts": ["apple"]},
        )

    def encode_prompt(self, prompt: str) -> list[int]:
        return [1, *range(len(prompt.split())), 2]

    def encode_unconditional(self, negative_prompt: str | None) -> list[int]:
        return self.encode_prompt(negative_prompt or "")

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(codes))
        grey = (codes * 10).to(torch.uint8)
        pixels = grey.repeat_interleave(8, 1).repeat_interleave(8, 2)
        return pixels.unsqueeze(-1).expand(-1, -1, -1, 3)


class FakeServingModels:
    base_model_paths = (SimpleNamespace(name="fake"), SimpleNamespace(name="gpt-image-1"))

    async def show_available_models(self) -> Any:
        data = [{"id": "fake", "object": "model", "root": "/secret/path"}]
        return SimpleNamespace(model_dump=lambda: {"object": "list", "data": list(data)})


def make_app(engine: FakeEngine, model: FakeModel, options: ServerOptions) -> FastAPI:
    """The routes, as the plugin mounts them."""
    app = FastAPI()
    app.include_router(router)
    app.state.zipar_images = ImageService(engine, model, options)
    app.state.openai_serving_models = FakeServingModels()
    return app


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def options() -> ServerOptions:
    return ServerOptions()


@pytest.fixture
async def http(
    engine: FakeEngine, model: FakeModel, options: ServerOptions
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application."""
    app = make_app(engine, model, options)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        client.app = app  # type: ignore[attr-defined]
        yield client
    app.state.zipar_images.close()


@pytest.fixture
def openai(http: httpx.AsyncClient) -> AsyncOpenAI:
    """The OpenAI client, on the same application."""
    return AsyncOpenAI(base_url="http://test/v1", api_key="k", http_client=http, max_retries=0)


def post_raw(
    http: httpx.AsyncClient, body: bytes
) -> tuple[list[Any], asyncio.Event, asyncio.Task[None]]:
    """Post an image request as ASGI messages.

    Returns what was sent back so far, the event that makes the client leave, and the request.
    """
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    leave = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    path = "/v1/images/generations"
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"test")],
        "scheme": "http",
        "server": ("test", 80),
        "http_version": "1.1",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }
    app = http.app  # type: ignore[attr-defined]
    return sent, leave, asyncio.create_task(app(scope, receive, send))
