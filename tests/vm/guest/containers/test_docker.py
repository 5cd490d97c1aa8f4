"""Docker, with its proxies and without: what its containers say to each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asking import (
    check_accelerated,
    check_disabled_without_loss,
    check_on_tcp,
    on_host,
)
from engines import (
    ENABLE,
    app,
    check_app_to_database,
    check_host_to_container,
    container,
    gateway,
    network,
)
from shell import sh
from status import counted, counters, soon

pytestmark = pytest.mark.usefixtures("anywhere")
ENGINE = "docker"
CONFIG = Path("/etc/docker/daemon.json")


def test_app_to_database(shop: None) -> None:
    check_app_to_database(ENGINE)


def test_paused_and_restarted(shop: None) -> None:
    """A paused container reads nothing; then it reads all, and in order."""
    with (
        container(ENGINE, "db", "--network shop"),
        app(ENGINE, "db:6379", "--network shop") as asker,
    ):
        check_accelerated(asker)
        for name in ("db", "app"):
            sh(f"docker pause {name}; sleep 3; docker unpause {name}")
            check_accelerated(asker)
            assert asker.progress()[0] == asker.connections
        sh("docker restart -t 20 db")
        check_accelerated(asker)
        assert asker.progress()[0] == 2 * asker.connections
        check_disabled_without_loss(asker)


def test_healthcheck(shop: None) -> None:
    """Docker runs redis-cli in the container, whose connection is over its loopback device."""
    health = "--health-cmd 'redis-cli ping' --health-interval 2s --health-timeout 60s"
    with (
        container(ENGINE, "db", f"--network shop {health}"),
        app(ENGINE, "db:6379", "--network shop") as asker,
    ):
        check_accelerated(asker)
        status = "docker inspect -f '{{.State.Health.Status}}' db"
        soon(lambda: sh(status) == "healthy\n", "the database is healthy")
        check_accelerated(asker)
        assert sh(status) == "healthy\n"
        check_disabled_without_loss(asker)


def test_host_to_container(shop: None) -> None:
    check_host_to_container(ENGINE)


def test_proxy_is_left_on_tcp(shop: None) -> None:
    """What is published on 127.0.0.1 passes through docker-proxy, which copies by splice(2)."""
    with (
        container(ENGINE, "db", "--network shop -p 127.0.0.1:16379:6379"),
        on_host("127.0.0.1:16379") as asker,
    ):
        asker.until_answered()
        with counted() as change:
            check_on_tcp(asker)
        assert change.messages == 0
        check_disabled_without_loss(asker)


@contextmanager
def configured(text: str) -> Iterator[None]:
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(text)
    sh("systemctl reset-failed docker; systemctl restart docker")
    yield
    CONFIG.unlink()
    sh("systemctl reset-failed docker; systemctl restart docker")


def test_without_proxy() -> None:
    """Docker translates both addresses then, and the source cannot be seen at first."""
    with (
        configured('{"userland-proxy": false}'),
        network(ENGINE, "shop"),
        container(ENGINE, "db", "--network shop -p 16379:6379"),
    ):
        with on_host(f"{gateway(ENGINE, 'db', 'shop')}:16379") as asker:
            check_accelerated(asker)
        assert "docker-proxy" not in sh("ps -e -o comm")
        before = counters()["declined_undecidable"]
        with on_host("127.0.0.1:16379") as asker:
            check_accelerated(asker, joined=True)
            assert counters()["declined_undecidable"] - before == asker.connections
            check_disabled_without_loss(asker)


def test_scope_by_cgroup(shop: None) -> None:
    """Containers of one slice, but not those outside of it."""
    with container(ENGINE, "db", "--network shop --cgroup-parent shop.slice"):
        sh(f"{ENABLE} --cgroup /shop.slice")
        with (
            app(ENGINE, "db:6379", "--network shop --cgroup-parent shop.slice") as inside,
            app(ENGINE, "db:6379", "--network shop", name="outsider") as outside,
        ):
            for found in check_accelerated(inside, joined=False):
                assert found["client_cgroup"].startswith("/shop.slice/docker-")
            check_on_tcp(outside)
            check_disabled_without_loss(inside)
