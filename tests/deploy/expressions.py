"""What dashboard, alerts and autoscaler ask Prometheus for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
METRIC = re.compile(r"\b(?:zipar:|vllm:|process_)\w+")
SUFFIXES = re.compile(r"_(total|bucket|sum|count)$")


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/zipar.json").read_text())
    return loaded


def dashboard_expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for variable in dashboard()["templating"]["list"]:
        yield variable["definition"]


def alert_expressions() -> list[str]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def adapter_queries() -> list[str]:
    rules = yaml.safe_load((DEPLOY / "kubernetes/prometheus-adapter.yaml").read_text())["rules"]
    return [rule["seriesQuery"] for rule in rules["custom"]]


def metrics_in(expressions: list[str]) -> set[str]:
    return {name for expression in expressions for name in METRIC.findall(expression)}


def used() -> set[str]:
    return metrics_in([*dashboard_expressions(), *alert_expressions(), *adapter_queries()])
