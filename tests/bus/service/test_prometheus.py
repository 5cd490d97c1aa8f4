"""A real Prometheus scrapes the daemon and answers the queries of the Grafana dashboard."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from support.checkout import REPOSITORY
from support.daemon.client import Client
from support.daemon.host import Host
from support.options import OPTIONS
from support.traffic import connect, dial, free_port, listen, read_exactly

DASHBOARD = REPOSITORY / "docs" / "grafana-dashboard.json"
# what Grafana puts in
VARIABLES = {"$instance": ".*", "$__rate_interval": "10s", "$__range": "1m"}
TIMEOUT_S = 30.0

pytestmark = pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Prometheus")


class Prometheus:
    def __init__(self, directory: Path, scraped_port: int) -> None:
        config = directory / "prometheus.json"  # which is YAML, too
        targets = {"targets": [f"127.0.0.1:{scraped_port}"]}
        job = {"job_name": "sockredir", "scrape_interval": "1s", "static_configs": [targets]}
        config.write_text(json.dumps({"scrape_configs": [job]}))
        address = f"127.0.0.1:{free_port()}"
        self._url = f"http://{address}/api/v1/query"
        with (directory / "prometheus.log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={directory / 'tsdb'}",
                    f"--web.listen-address={address}",
                ],
                stderr=log,
            )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """A series each, with its `metric` (labels) and `value` (time, value)."""
        with urlopen(f"{self._url}?{urlencode({'query': expression})}", timeout=5) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def prometheus(host: Host, tmp_path: Path) -> Iterator[Prometheus]:
    port = free_port()
    host.overrides["metrics"] = {"listen": f"127.0.0.1:{port}"}
    host.start()
    server = Prometheus(tmp_path, port)
    yield server
    server.close()


def work() -> None:
    """Of three connections one stays accelerated, one is retired, and the third declined."""
    with listen() as listener:
        lasting, retired = connect(listener), connect(listener)
        lasting.client.sendall(b"x")
        assert read_exactly(lasting.server, 1) == b"x"
        OPTIONS["oobinline"].set(retired.server)
        _open.extend((lasting, retired, dial(listener)))  # for the gauges


_open: list[Any] = []


def queries() -> list[tuple[str, str]]:
    """Each with the title of its panel."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]


def test_dashboard(host: Host, prometheus: Prometheus) -> None:
    host.client().call("Enable")
    actor = host.actor()
    missing = queries()
    deadline = time.monotonic() + TIMEOUT_S
    while missing and time.monotonic() < deadline:
        actor.do(work)
        for panel, query in list(missing):
            expression = query
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            with suppress(URLError):  # it is still starting
                if any(float(series["value"][1]) > 0 for series in prometheus.query(expression)):
                    missing.remove((panel, query))
        time.sleep(0.5)
    assert not missing


def test_lint(host: Host, enabled: Client) -> None:
    """Names and units by Prometheus's conventions."""
    exposed = host.ctl("stats", "--format", "prometheus").stdout

    def check(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["promtool", "check", "metrics"], input=text, text=True, capture_output=True
        )

    assert check(exposed.replace("bytes_total", "kilobytes")).returncode != 0
    done = check(exposed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
