"""A server process for the load and soak tests, and what its ``/metrics`` say."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = ROOT / "zipar_vllm" / "demo"
ZIPAR = Path(sys.executable).with_name("zipar")
START_SECONDS = 900
STOP_SECONDS = 180
HTTP_SECONDS = 60


@dataclass(frozen=True)
class Model:
    """What is served: its name, a size, and the size's columns, the widest window there is."""

    name: str
    size: str
    columns: int


class Metrics:
    """One reading of ``/metrics``."""

    def __init__(self, text: str) -> None:
        self._samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples with these labels; 0 where there is none yet."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@dataclass(frozen=True)
class Server:
    """A server: ours with its process, or somebody else's by its address."""

    url: str
    process: subprocess.Popen[bytes] | None = None

    def metrics(self) -> Metrics:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=HTTP_SECONDS) as answer:
            return Metrics(answer.read().decode())

    def model(self, size: str | None = None) -> Model:
        """The first served model, at ``size`` or at its first one."""
        with urllib.request.urlopen(f"{self.url}/v1/models", timeout=HTTP_SECONDS) as answer:
            first = json.load(answer)["data"][0]
        size = size or first["zipar"]["sizes"][0]
        return Model(first["id"], size, first["zipar"]["windows"][size]["max"])

    def draw(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """One picture, outside any measurement."""
        request = urllib.request.Request(
            f"{self.url}/v1/images/generations",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
            result: dict[str, Any] = json.load(answer)
        return result

    def stop(self) -> int:
        """Ask the process to end and return its exit code; it is killed if it does not."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def running_server(*options: str, model: Path | None = None) -> Iterator[Server]:
    """A server of ``model``, else the embedded one, on a free port, until the block is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(ZIPAR), "serve", *([str(model)] if model else [])]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        server = Server(f"http://127.0.0.1:{port}", process)
        try:
            _wait_until_healthy(server)
            yield server
        except BaseException:
            print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
            raise
        finally:
            server.stop()


def _wait_until_healthy(server: Server) -> None:
    assert server.process is not None
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(1)
    raise RuntimeError("the server did not start")


def client_environment() -> dict[str, str]:
    """For the load generators: this folder's modules, and no offline mode.

    AIPerf refuses a tokenizer in a local folder where the Hugging Face hub is set offline.
    """
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    return environment | {"PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"}
