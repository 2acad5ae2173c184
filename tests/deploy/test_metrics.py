"""Dashboard, alerts and autoscaler ask for metrics that the server has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY, generate_latest

import server.metrics  # noqa: F401  (registers our metrics)
import zipar_vllm.engine.stats  # noqa: F401  (the engine's)
from tests.deploy.expressions import (
    DEPLOY,
    SUFFIXES,
    dashboard,
    dashboard_expressions,
    metrics_in,
    used,
)


def existing() -> set[str]:
    """Families of this project's registry, and the names in vLLM's source."""
    ours = re.findall(r"^# TYPE (\S+) ", generate_latest(REGISTRY).decode(), re.MULTILINE)
    package = find_spec("vllm")
    assert package is not None
    assert package.origin is not None
    loggers = Path(package.origin).parent / "v1/metrics/loggers.py"
    theirs = re.findall(r'name="(vllm:\w+)"', loggers.read_text())
    assert len(theirs) > 10
    # A histogram's name may end like a counter's: vllm:iteration_tokens_total.
    return {SUFFIXES.sub("", name) for name in ours} | {*theirs}


def test_every_metric_that_is_asked_for_exists() -> None:
    asked = used()
    assert {"zipar:images_finished_total", "vllm:num_requests_waiting"} <= asked
    known = existing()
    assert {name for name in asked if not {name, SUFFIXES.sub("", name)} & known} == set()


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    ours = {name for name in existing() if name.startswith("zipar:")}
    shown = {SUFFIXES.sub("", name) for name in metrics_in(list(dashboard_expressions()))}
    assert {re.sub("_created$", "", name) for name in ours} - shown == set()


def test_counters_are_asked_for_by_their_exposed_names() -> None:
    exposed = generate_latest(REGISTRY).decode()
    counters = set(re.findall(r"^# TYPE (zipar:\S+)_total counter", exposed, re.MULTILINE))
    assert counters
    for name in used():
        if name.startswith("zipar:") and SUFFIXES.sub("", name) in counters:
            assert name.endswith("_total")


def test_panels_are_drawn_from_a_data_source_that_is_provisioned() -> None:
    sources = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )
    uids = {source["uid"] for source in sources["datasources"]}
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    assert {panel["datasource"]["uid"] for panel in panels} <= uids
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(dashboard()["panels"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_expressions_are_promql(tmp_path: Path) -> None:
    expressions = [e for e in dashboard_expressions() if not e.startswith("label_values")]
    rules = [
        {"record": f"panel:{index}", "expr": expression.replace("$__rate_interval", "1m")}
        for index, expression in enumerate(expressions)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    command = ["promtool", "check", "rules", "--lint=none", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
