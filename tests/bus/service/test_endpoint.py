"""The scrape endpoint: what `stats --format` prints, on a unix socket, if configured."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from sockredird.service import endpoint
from support.daemon.client import Client
from support.daemon.host import Host
from support.waiting import eventually


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


@pytest.fixture
def listening(host: Host) -> Path:
    path = host.directory / "metrics"
    host.overrides["metrics"] = {"listen": f"unix:{path}"}
    host.start()
    return path


def exchange(path: Path, request: bytes, *, end: bool = False) -> bytes:
    """The answer to some bytes; `end`: and no more will come."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        connection.sendall(request)
        if end:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer


LONG = b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 100_000
WRONG = {
    "long": (LONG, b"431 "),
    "no end": (b"GET /metrics HTTP/1.1\r\n", b"400 "),
    "nothing": (b"", b"400 "),
    "no HTTP": (b"\xff\0\r\n\r\n", b"400 "),
    "other version": (b"GET /metrics HTTP/2\r\n\r\n", b"400 "),
    "two words": (b"GET /metrics\r\n\r\n", b"400 "),
    "put": (b"PUT /metrics HTTP/1.1\r\n\r\n", b"405 "),
}


@pytest.mark.parametrize(("request_", "status"), WRONG.values(), ids=WRONG)
def test_wrong_requests(listening: Path, request_: bytes, status: bytes) -> None:
    answer = exchange(listening, request_, end=not request_.endswith(b"\r\n\r\n"))
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"\r\nConnection: close\r\n" in answer
    assert get(listening, "")[0].startswith("HTTP/1.1 200 ")


def test_who_sends_nothing_is_not_waited_for(listening: Path) -> None:
    began = time.monotonic()
    assert exchange(listening, b"GET").startswith(b"HTTP/1.1 408 ")
    assert endpoint.TIMEOUT_S <= time.monotonic() - began < 2 * endpoint.TIMEOUT_S


def test_so_many_connections(listening: Path) -> None:
    """The next one is refused, and those that are held are closed in time."""
    with ExitStack() as stack:
        for _ in range(endpoint.CONNECTIONS):
            held = stack.enter_context(socket.socket(socket.AF_UNIX))
            held.connect(str(listening))
        assert get(listening, "")[0].startswith("HTTP/1.1 503 ")
    eventually(lambda: get(listening, "")[0].startswith("HTTP/1.1 200 "), "there is room again")


def test_one_who_never_reads(host: Host) -> None:
    """The connection of a client that does not read its answer is closed."""
    path = host.directory / "metrics"
    host.overrides["metrics"] = {"listen": f"unix:{path}"}
    daemon = host.start()
    held = len(os.listdir(f"/proc/{daemon.pid}/fd"))  # noqa: PTH208
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(str(path))
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        eventually(
            lambda: len(os.listdir(f"/proc/{daemon.pid}/fd")) == held,  # noqa: PTH208
            "the connection is closed",
        )
