"""Containers that are systemd units, by podman's quadlets: scope by --unit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import Asker, check_accelerated, check_on_tcp
from engines import IMAGE, app, asker_of
from shell import sh

ENGINE = "podman"
QUADLETS = Path("/etc/containers/systemd")
DATABASE = f"""\
[Container]
ContainerName=db
Image={IMAGE}
Network=shop.network
"""
APP = f"""\
[Unit]
After=db.service
[Container]
ContainerName=app
Image={IMAGE}
Network=shop.network
Exec=ask db:6379 4
LogDriver=k8s-file
"""


@pytest.fixture
def asker(quadlets: None) -> Iterator[Asker]:
    QUADLETS.mkdir(parents=True, exist_ok=True)
    files = {"db.container": DATABASE, "app.container": APP, "shop.network": "[Network]\n"}
    for name, text in files.items():
        (QUADLETS / name).write_text(text)
    try:
        sh("systemctl daemon-reload; systemctl start db app")
        yield asker_of(ENGINE, "app")
    finally:
        sh("journalctl -b --no-pager -u app -u db -u shop-network | tail -n 40")
        sh("systemctl stop app db shop-network; podman network rm systemd-shop")
        for name in files:
            (QUADLETS / name).unlink()
        sh("systemctl daemon-reload; sockredirctl disable")


def test_scope_by_unit(asker: Asker) -> None:
    said = sh("sockredirctl enable --addresses any --unit db --unit app")
    assert "db.service" in said
    for found in check_accelerated(asker, joined=True):
        assert (found["client_unit"], found["server_unit"]) == ("app.service", "db.service")
    said = sh("sockredirctl list --unit app")
    assert said.count("app.service,db.service") == asker.connections
    with app(ENGINE, "db:6379", "--network systemd-shop", name="outsider") as outsider:
        check_on_tcp(outsider)
    # a connection that comes before the daemon has heard of the restart is joined
    sh("systemctl restart db")
    check_accelerated(asker)
    sh("systemctl restart app")
    check_accelerated(asker_of(ENGINE, "app"))
