"""docs/containers.md, with podman."""

from __future__ import annotations

import documented
import pytest
from shell import sh
from status import accelerated_now, soon

pytestmark = pytest.mark.usefixtures("running", "engine")
ENGINE = "podman"
CONNECTIONS = 4  # of the application


def accelerated() -> None:
    soon(lambda: accelerated_now() == CONNECTIONS, "the application is accelerated")


def test_podman() -> None:
    (said,) = documented.type_commands("Podman", accelerated)
    assert said.count("redis-benchmark") == CONNECTIONS
    sh("sockredirctl disable")


def test_quadlets(quadlets: None) -> None:
    documented.write_files("Podman, as systemd units", "/etc/containers/systemd")
    (said,) = documented.type_commands("Podman, as systemd units", accelerated)
    assert said.count("app.service,db.service") == CONNECTIONS
    sh("sockredirctl disable; rm -r /etc/containers/systemd/*; systemctl daemon-reload")
