"""Keys, overload, draining and death: each needs a server of its own."""

from __future__ import annotations

import base64
import io
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from .conftest import Server, start_server

pytestmark = pytest.mark.live

KEY = {"Authorization": "Bearer secret"}
SLOW = {"prompt": "house", "seed": 1, "zipar": {"window": 24}}


def post(server: Server, body: dict[str, Any], **options: Any) -> httpx.Response:
    url = f"{server.url}/v1/images/generations"
    return httpx.post(url, json=body, headers=KEY, timeout=120, **options)


def is_picture(answer: httpx.Response) -> bool:
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return Image.open(io.BytesIO(data)).size == (192, 192)


def is_envelope(answer: httpx.Response) -> bool:
    return {"message", "type", "param", "code"} <= set(answer.json()["error"])


def wait_for_running(server: Server, images: int = 1) -> None:
    deadline = time.monotonic() + 30
    while server.metric("vllm:num_requests_running") < images:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a key, room for four images and a folder for pictures."""
    folder = tmp_path_factory.mktemp("guarded")
    server = start_server(
        folder / "server.log",
        *("--api-key", "secret", "--max-active-images", "4", "--shutdown-timeout", "60"),
        *("--storage-dir", str(folder / "pictures")),
    )
    yield server
    server.process.kill()


def test_without_the_key_401_in_the_envelope(guarded: Server) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        url = f"{guarded.url}/v1/images/generations"
        answer = httpx.post(url, json={"prompt": "x"}, headers=headers)
        assert answer.status_code == 401
        assert is_envelope(answer)


def test_urls_are_served_and_cannot_be_guessed(guarded: Server) -> None:
    answer = post(guarded, {"prompt": "red apple", "response_format": "url", "seed": 1})
    url = answer.json()["data"][0]["url"]
    picture = httpx.get(url)
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).size == (192, 192)
    other = "y" if url[-5] == "x" else "x"
    assert httpx.get(f"{url[:-5]}{other}.png").status_code == 404
    assert httpx.get(f"{guarded.url}/images/..%2f..%2fserver.log").status_code == 404


def test_overload_is_refused_at_once_and_nothing_is_lost(guarded: Server) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda seed: post(guarded, {**SLOW, "seed": seed}), range(12)))
    refused = [answer for answer in answers if answer.status_code == 503]
    drawn = [answer for answer in answers if answer.status_code == 200]
    assert len(refused) + len(drawn) == 12
    assert len(drawn) >= 4
    assert refused
    assert all(
        int(answer.headers["retry-after"]) >= 1 and is_envelope(answer) for answer in refused
    )
    assert all(is_picture(answer) for answer in drawn)
    assert max(answer.elapsed for answer in refused) < min(answer.elapsed for answer in drawn)


def test_request_ids_and_the_access_log(guarded: Server) -> None:
    answer = httpx.post(
        f"{guarded.url}/v1/images/generations",
        json={"prompt": "pizza", "seed": 1},
        headers={**KEY, "X-Request-Id": "my-id-1"},
        timeout=120,
    )
    assert answer.headers["x-request-id"] == "my-id-1"
    line = next(line for line in guarded.log.read_text().splitlines() if "id=my-id-1" in line)
    assert "status=200 n=1 size=192x192 window=4 policy=fixed_window steps=116 ms=" in line


def test_sigterm_finishes_what_runs_and_refuses_the_rest(guarded: Server) -> None:
    """The last one with this server."""
    with ThreadPoolExecutor(4) as pool:
        running: list[Future[httpx.Response]] = [
            pool.submit(post, guarded, {**SLOW, "seed": seed}) for seed in range(3)
        ]
        wait_for_running(guarded, 3)
        guarded.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        late = post(guarded, SLOW)
        answers = [future.result() for future in running]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert all(is_picture(answer) for answer in answers)
    assert late.status_code == 503
    assert is_envelope(late)
    assert guarded.process.wait(90) == 0, guarded.log.read_text()[-2000:]


def test_a_dead_engine_ends_the_server(tmp_path: Path) -> None:
    server = start_server(tmp_path / "server.log")
    engine = max(  # it holds the model
        psutil.Process(server.process.pid).children(recursive=True),
        key=lambda process: process.memory_info().rss,
    )
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, server, SLOW)
        wait_for_running(server)
        engine.kill()
        answer = running.result()
    assert answer.status_code == 500
    assert is_envelope(answer)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert httpx.get(f"{server.url}/health").status_code == 503
            time.sleep(0.2)
        except httpx.TransportError:
            break  # gone
    assert server.process.wait(60) not in (0, None)
