"""The Grafana dashboard, and the documentation of the metrics, name what is exposed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sockredirctl import metrics
from sockredird.loader.records import COUNTERS
from support.checkout import REPOSITORY

DOCS = REPOSITORY / "docs"
_GIVEN_BY_PROMETHEUS = {"instance"}
PROPERTIES = {"Version": "0", "State": "enabled", "Since": 0, "Problem": ""}
STATS = dict.fromkeys([*COUNTERS, "active_connections", "map_entries", "map_capacity"], 0)


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """Names of all samples, and of their labels."""
    text = metrics.text(PROPERTIES, STATS, metrics.STYLES["prometheus"])
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((DOCS / "grafana-dashboard.json").read_text())[
        "panels"
    ]
    return found


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_panel(panel: dict[str, Any], exposed: dict[str, set[str]]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        names = set(re.findall(r"\bsockredir_\w+(?=\{)", target["expr"]))
        assert names
        assert names <= exposed.keys()
        labels = _GIVEN_BY_PROMETHEUS.union(*(exposed[name] for name in names))
        used = re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))
        used += re.findall(r"[{,](\w+)=~?\"", target["expr"])
        used += re.findall(r"\bby \((\w+)\)", target["expr"])
        assert used
        assert set(used) <= labels


def test_documented(exposed: dict[str, set[str]]) -> None:
    text = (DOCS / "metrics.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    documented = re.findall(r"`(sockredir_\w+)(?:\{(\w+)\})?`", "\n".join(rows))
    assert {name: {label} - {""} for name, label in documented} == exposed
