"""Podman as root, with netavark's bridges: what its containers say to each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from asking import check_accelerated, check_disabled_without_loss, on_host
from engines import app, check_app_to_database, check_host_to_container, container, gateway, network
from shell import sh
from status import counters

pytestmark = pytest.mark.usefixtures("anywhere")
ENGINE = "podman"
CONFIGURED = Path("/etc/containers/networks")


def test_app_to_database(shop: None) -> None:
    check_app_to_database(ENGINE)


def test_pod() -> None:
    """Its containers share a network namespace, and the loopback addresses in it."""
    sh("podman pod create --name shop")
    try:
        with (
            container(ENGINE, "db", "--pod shop"),
            app(ENGINE, "127.0.0.1:6379", "--pod shop") as a,
        ):
            for found in check_accelerated(a, joined=False):
                assert found["server"] == "127.0.0.1:6379"
                assert "server_netns" not in found
            check_disabled_without_loss(a)
    finally:
        sh("podman pod rm -f shop")


def test_host_to_container(shop: None) -> None:
    check_host_to_container(ENGINE)


def test_published_on_loopback_is_joined(shop: None) -> None:
    """Podman translates the source address then, too, which cannot be seen at first."""
    with container(ENGINE, "db", "--network shop -p 16379:6379"):
        before = counters()["declined_undecidable"]
        with on_host("127.0.0.1:16379") as asker:
            check_accelerated(asker, joined=True)
            assert counters()["declined_undecidable"] - before == asker.connections
            check_disabled_without_loss(asker)


def test_published_port_from_another_network(shop: None) -> None:
    """From one bridge to the other podman masquerades."""
    with (
        network(ENGINE, "other"),
        container(ENGINE, "db", "--network shop -p 16379:6379"),
        container(ENGINE, "neighbour", "--network other"),
    ):
        before = counters()["declined_undecidable"]
        host = gateway(ENGINE, "neighbour", "other")
        with app(ENGINE, f"{host}:16379", "--network other") as asker:
            check_accelerated(asker, joined=True)
            assert counters()["declined_undecidable"] - before == asker.connections
            check_disabled_without_loss(asker)


@pytest.fixture
def alike() -> Iterator[None]:
    """Two networks with the same addresses.

    No command makes the second one, as they overlap; a file of podman's does, as on a host to which
    it was copied.
    """
    with network(ENGINE, "one", "--internal --disable-dns --subnet 10.89.77.0/24"):
        config = json.loads((CONFIGURED / "one.json").read_text())
        config |= {"name": "two", "id": "2" * 64, "network_interface": "podman99"}
        (CONFIGURED / "two.json").write_text(json.dumps(config))
        yield
        sh("podman network rm two")


def test_same_addresses_in_two_networks(alike: None) -> None:
    """Only the network namespaces tell the connections apart, and not even the clients' ports."""
    server, client, port = "10.89.77.2", "10.89.77.3", 40000
    with (
        container(ENGINE, "db1", f"--network one --ip {server}"),
        container(ENGINE, "db2", f"--network two --ip {server}"),
        app(
            ENGINE,
            f"{server}:6379",
            f"--network one --ip {client}",
            local_port=port,
            name="app1",
        ) as first,
        app(
            ENGINE,
            f"{server}:6379",
            f"--network two --ip {client}",
            local_port=port,
            name="app2",
        ) as second,
    ):
        found = [check_accelerated(asker, joined=False)[0] for asker in (first, second)]
        for connection in found:
            assert connection["client"] == f"{client}:{port}"
            assert connection["server"] == f"{server}:6379"
        assert len({c["netns"] for c in found} | {c["server_netns"] for c in found}) == 4
        check_disabled_without_loss(second)
