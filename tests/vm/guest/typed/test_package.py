"""Upgrade, remove, purge and reinstall, each from where the one before it ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import compiled
import pytest
from pair import MESSAGES, Pair
from shell import sh
from status import counted, counters, loaded, state

Fleet = Callable[[int], AbstractContextManager[Any]]
CLIENTS = 4
ROUNDS = 20
LEFTOVERS = (
    "/etc/sockredird",
    "/run/sockredird",
    "/sys/fs/bpf/sockredird",
    "/usr/lib/python3/dist-packages/sockredird",
    "/usr/share/dbus-1/system.d/org.sockredir.conf",
    "/var/lib/sockredird",
    "/var/cache/sockredird",
)


def test_upgrade_under_traffic(enabled: None, fleet: Fleet, tmp_path: Path) -> None:
    sh(
        f"dpkg-deb -R ./sockredird_*.deb {tmp_path}/next && "
        f"sed -i 's/^Version: .*/&+next/' {tmp_path}/next/DEBIAN/control && "
        f"dpkg-deb -Znone -b {tmp_path}/next {tmp_path}/next.deb"
    )
    with fleet(CLIENTS) as traffic:
        traffic.wait(ROUNDS, timeout=120)
        sh(f"apt install {tmp_path}/next.deb")
        assert sh("dpkg-query -W -f '${Version}' sockredird").endswith("+next")
        assert state() == "enabled"
        traffic.wait(ROUNDS, timeout=120)


def test_remove_under_traffic(enabled: None, fleet: Fleet) -> None:
    with fleet(CLIENTS) as traffic:
        traffic.wait(ROUNDS, timeout=120)
        assert counters()["accelerated_connections"] >= CLIENTS
        sh("apt-get remove -y sockredird")
        assert not Path("/sys/fs/bpf/sockredird").is_dir() or not list(
            Path("/sys/fs/bpf/sockredird").iterdir()
        )
        assert not loaded()
        traffic.wait(ROUNDS, timeout=120)


def left() -> list[str]:
    return [path for path in LEFTOVERS if Path(path).exists()]


@pytest.mark.userland
def test_purge_leaves_nothing(removed: None) -> None:
    assert "/etc/sockredird" in left()
    sh("apt-get purge -y sockredird")
    assert left() == []
    assert not loaded()
    assert not sh("bpftool cgroup tree | grep sockredir || true")
    assert not sh("systemctl list-unit-files --no-legend 'sockredird*' || true")
    assert "org.sockredir" not in sh("busctl list --activatable --no-legend")


@pytest.mark.userland
def test_reinstall(purged: None) -> None:
    sh("apt install ./sockredird_*.deb")
    sh("systemctl start sockredird")
    compiled.put_back()
    sh("sockredirctl enable")
    with counted() as change, Pair() as pair:
        pair.send()
    assert (change.connections, change.messages) == (1, MESSAGES)
    sh("sockredirctl disable")
