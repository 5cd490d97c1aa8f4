"""The counters as Prometheus metrics: docs/metrics.md. The daemon's endpoint serves them, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    StateSetMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

STATES = ("disabled", "enabled", "draining", "failed")

_COUNTERS = {
    "accelerated_connections": "Connections that were paired.",
    "joined_connections": "Connections that were paired after they were established.",
    "redirected_messages": "Messages that bypassed the network stack.",
    "redirected_bytes": "Bytes that bypassed the network stack.",
    "dropped_events": "Events that were lost, as the ring buffer to the daemon was full.",
}
_GAUGES = {
    "active_connections": "Connections accelerated now.",
    "map_entries": "Sockets on the sockhash, two for each connection.",
    "map_capacity": "Sockets the sockhash has room for.",
}
_REASONS = {
    "declined": "Connections in scope that were left on TCP.",
    "retired": "Accelerated connections that went back to TCP for good.",
}
_PAUSES = "Times that a direction of an accelerated connection went to TCP for a while."


@dataclass(frozen=True)
class Style:
    content_type: str
    generate: Callable[[CollectorRegistry], bytes]


STYLES = {
    "openmetrics": Style(openmetrics.CONTENT_TYPE_LATEST, openmetrics.generate_latest),
    # for readers that do not know OpenMetrics, such as node_exporter's textfile collector
    "prometheus": Style(exposition.CONTENT_TYPE_LATEST, exposition.generate_latest),
}


def negotiate(accept: str) -> Style:
    """The style for an HTTP client with this Accept header."""
    return STYLES["openmetrics" if "application/openmetrics-text" in accept else "prometheus"]


class _Collector(Collector):
    def __init__(self, properties: dict[str, Any], stats: dict[str, int]) -> None:
        self._properties = properties
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        version = {"version": self._properties["Version"]}
        yield InfoMetricFamily("sockredir", "The running daemon.", value=version)
        state = {name: name == self._properties["State"] for name in STATES}
        yield StateSetMetricFamily("sockredir_state", "State of acceleration.", value=state)
        yield GaugeMetricFamily(
            "sockredir_state_since_timestamp_seconds",
            "When the state was entered.",
            value=self._properties["Since"] / 1e6,
            unit="seconds",
        )
        yield GaugeMetricFamily(
            "sockredir_degraded",
            "Whether something is wrong: the Problem that status shows.",
            value=bool(self._properties["Problem"]),
        )
        for name, text in _COUNTERS.items():
            unit = "bytes" if name.endswith("_bytes") else ""
            value = self._stats[name]
            yield CounterMetricFamily(f"sockredir_{name}", text, value=value, unit=unit)
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"sockredir_{name}", text, value=self._stats[name])
        for kind, text in _REASONS.items():
            family = CounterMetricFamily(f"sockredir_{kind}_connections", text, labels=["reason"])
            for name, value in self._stats.items():
                if name.startswith(f"{kind}_") and name != f"{kind}_connections":
                    family.add_metric([name.removeprefix(f"{kind}_")], value)
            yield family
        pauses = CounterMetricFamily("sockredir_pauses", _PAUSES, labels=["reason"])
        for name, value in self._stats.items():
            if name.startswith("paused_"):
                pauses.add_metric([name.removeprefix("paused_")], value)
        yield pauses


def text(properties: dict[str, Any], stats: dict[str, int], style: Style) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(properties, stats))
    return style.generate(registry).decode()
