"""The dashboard and the alerts, against what a running server exposes."""

from __future__ import annotations

import httpx
import pytest

from tests.deploy.expressions import used
from tests.live.conftest import Server

pytestmark = pytest.mark.live

# Has labels, so it appears with the first failure: tests/deploy checks its name.
ONLY_AFTER_A_FAILURE = {"zipar:images_failed_total"}


def test_every_metric_that_is_asked_for_is_exposed(server: Server) -> None:
    request = {"prompt": "red apple", "seed": 1}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=request, timeout=120)
    assert answer.status_code == 200
    scrape = httpx.get(f"{server.url}/metrics").text
    names = {line.split("{")[0].split(" ")[0] for line in scrape.splitlines()}
    assert used() - names - ONLY_AFTER_A_FAILURE == set()
