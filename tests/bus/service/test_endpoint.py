"""The scrape endpoint: what `stats --format` prints, on a unix socket, if configured."""

from __future__ import annotations

import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from support.daemon.client import Client
from support.daemon.host import Host


def get(path: Path, accept: str, what: str = "GET /metrics") -> tuple[str, str]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(f"{what} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
        answer = b""
        while data := connection.recv(65536):
            answer += data
    head, _, body = answer.decode().partition("\r\n\r\n")
    return head, body


def test_off_by_default(host: Host, enabled: Client) -> None:
    assert not list(host.directory.glob("metrics"))


def test_scraped(host: Host, ask: Callable[..., Any]) -> None:
    path = host.directory / "metrics"
    host.overrides["metrics"] = {"listen": f"unix:{path}"}
    daemon = host.start()
    host.client().call("Enable")
    head, body = get(path, "application/openmetrics-text")
    assert head.startswith("HTTP/1.1 200 ")
    assert body == host.ctl("stats", "--format", "openmetrics").stdout
    stats = ask("stats")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(body):
        for sample in family.samples:
            found[sample.name + "".join(sample.labels.values())] = sample.value
    for name, value in stats.items():
        kind, _, reason = name.partition("_")
        if kind in ("declined", "retired") and reason != "connections":
            assert found[f"sockredir_{kind}_connections_total{reason}"] == value
    assert found["sockredir_stateenabled"] == 1
    assert get(path, "", "GET /other")[0].startswith("HTTP/1.1 404 ")
    assert get(path, "", "POST /metrics")[0].startswith("HTTP/1.1 405 ")
    assert get(path, "")[0].find("text/plain") > 0
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert daemon.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize("listen", ["0.0.0.0:9109", "192.0.2.1:9109", "localhost:1", "unix:x"])
def test_only_this_host(host: Host, listen: str) -> None:
    host.overrides["metrics"] = {"listen": listen}
    daemon = host.launch()
    assert daemon.wait() == 78
    assert "metrics.listen" in daemon.stderr
