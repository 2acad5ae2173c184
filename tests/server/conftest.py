"""The routes over a fake engine: what it is asked, and what it answers, is the test's to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI

from server import page
from server.options import ServerOptions
from server.routes import router
from server.service import ImageService
from tests.fakes import FakeEngine, FakeModel


class FakeServingModels:
    base_model_paths = (SimpleNamespace(name="fake"), SimpleNamespace(name="gpt-image-1"))

    async def show_available_models(self) -> Any:
        data = [{"id": "fake", "object": "model", "root": "/secret/path"}]
        return SimpleNamespace(model_dump=lambda: {"object": "list", "data": list(data)})


def make_app(engine: FakeEngine, model: FakeModel, options: ServerOptions) -> FastAPI:
    """The routes, as the plugin mounts them."""
    app = FastAPI()
    app.include_router(router)
    app.include_router(page.router)
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
