"""The proxy in front of the server lets through what it lists, and nothing else."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

TEMPLATE = Path(__file__).parents[2] / "deploy/kubernetes/base/proxy.conf.template"
NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (nginx-light)")


class Upstream(BaseHTTPRequestHandler):
    """Answers everything with its path, so that an answer proves the request came through."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = f"reached {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("nginx")
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = TEMPLATE.read_text()
    text = text.replace("${ZIPAR_UPSTREAM}", f"127.0.0.1:{upstream.server_port}")
    assert "listen 8080;" in text
    (folder / "proxy.conf").write_text(text.replace("listen 8080;", f"listen 127.0.0.1:{port};"))
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {temporary} include {folder}/proxy.conf; }}\n"
    )
    command = [str(NGINX), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:
        for _ in range(100):
            try:
                client.get("/health")
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        yield client
    process.terminate()
    process.wait(10)
    upstream.shutdown()
    upstream.server_close()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/page.css"),
        ("GET", "/page.js"),
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/images/edits"),
        ("GET", "/images/name.png"),
    ],
)
def test_lets_through(proxy: httpx.Client, method: str, path: str) -> None:
    assert proxy.request(method, path).text == f"reached {path}"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/metrics"),
        ("POST", "/invocations"),
        ("POST", "/tokenize"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/docs"),
        ("POST", "/sleep"),
        ("GET", "/v1/images/../../metrics"),
        ("GET", "/v1/images/%2e%2e/%2e%2e/metrics"),
        ("GET", "/%2fmetrics"),
    ],
)
def test_hides(proxy: httpx.Client, method: str, path: str) -> None:
    response = proxy.request(method, path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_refuses_a_body_larger_than_any_request(proxy: httpx.Client) -> None:
    response = proxy.post("/v1/images/generations", content=b"x" * 300_000)
    assert response.status_code == 413


def test_refuses_methods_that_change_what_is_only_read(proxy: httpx.Client) -> None:
    assert proxy.delete("/v1/models").status_code == 403
