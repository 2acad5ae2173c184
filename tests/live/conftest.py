"""A server process with the embedded model, as a user starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ZIPAR = Path(sys.executable).with_name("zipar")
START_SECONDS = 600


@dataclass
class Server:
    """A running ``zipar serve``."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        values = [
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(f"{name}{{") or line.startswith(f"{name} ")
        ]
        assert values, f"no metric {name}"
        return sum(values)


def start_server(
    log: Path, *options: str, model: str | None = None, environment: Mapping[str, str] | None = None
) -> Server:
    """Start a server, of the embedded model if no other is named, and wait until it is healthy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    named = [] if model is None else [model]
    command = [str(ZIPAR), "serve", *named, "--host", "127.0.0.1", "--port", str(port), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **(environment or {})}
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                return server
        except httpx.TransportError:
            time.sleep(0.5)
    process.kill()
    raise AssertionError(f"the server did not start:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all live tests; ends by SIGTERM, with exit code 0."""
    folder = tmp_path_factory.mktemp("live")
    server = start_server(folder / "server.log", "--shutdown-timeout", "30")
    yield server
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(90) == 0, server.log.read_text()[-2000:]
