"""apt install, remove, purge and upgrade, with nobody on the network to help."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pair import MESSAGES, Pair
from shell import sh
from status import counted, counters, state

Fleet = Callable[[int], AbstractContextManager[Any]]
CLIENTS = 4
ROUNDS = 20
LIMIT_KIB = 1024
LEFTOVERS = (
    "/etc/sockredird",
    "/run/sockredird",
    "/sys/fs/bpf/sockredird",
    "/usr/lib/python3/dist-packages/sockredird",
    "/usr/share/dbus-1/system.d/org.sockredir.conf",
    "/var/lib/sockredird",
)


def packages() -> set[str]:
    return set(sh("dpkg-query -W -f '${Package}\\n'").split())


def loaded() -> str:
    """Our BPF programs, by what the kernel says."""
    return sh("bpftool prog show | grep -E 'name (sockredir|textbook)' || true")


def test_apt_install(purged: None) -> None:
    before = packages()
    sh("apt install ./sockredird_*.deb")
    assert packages() - before == {"sockredird"}
    sh("systemctl is-enabled sockredird")
    sh("sockredirctl --version")


def test_installed_size(installed: None) -> None:
    assert int(sh("dpkg-query -W -f '${Installed-Size}' sockredird")) < LIMIT_KIB


def test_no_compiler_and_no_headers(installed: None) -> None:
    found = {name for name in packages() if name.startswith(("linux-headers", "clang", "llvm"))}
    assert not found
    assert not packages() & {"gcc", "cc", "g++", "make", "libc6-dev", "linux-libc-dev"}


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


def test_purge_leaves_nothing(enabled: None) -> None:
    sh("apt-get purge -y sockredird")
    assert [path for path in LEFTOVERS if Path(path).exists()] == []
    assert not loaded()
    assert not sh("bpftool cgroup tree | grep sockredir || true")
    assert not sh("systemctl list-unit-files --no-legend 'sockredird*'")
    assert "org.sockredir" not in sh("busctl list --activatable --no-legend")


def test_reinstall(purged: None) -> None:
    sh("apt install ./sockredird_*.deb")
    sh("systemctl start sockredird")
    sh("sockredirctl enable")
    with counted() as change, Pair() as pair:
        pair.send()
    assert (change.connections, change.messages) == (1, MESSAGES)
    sh("sockredirctl disable")


def test_upgrade_under_traffic(enabled: None, fleet: Fleet, tmp_path: Path) -> None:
    sh(
        f"dpkg-deb -R ./sockredird_*.deb {tmp_path}/next && "
        f"sed -i 's/^Version: .*/&+next/' {tmp_path}/next/DEBIAN/control && "
        f"dpkg-deb -b {tmp_path}/next {tmp_path}/next.deb"
    )
    with fleet(CLIENTS) as traffic:
        traffic.wait(ROUNDS, timeout=120)
        sh(f"apt install {tmp_path}/next.deb")
        assert sh("dpkg-query -W -f '${Version}' sockredird").endswith("+next")
        assert state() == "enabled"
        traffic.wait(ROUNDS, timeout=120)
