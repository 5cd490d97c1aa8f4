"""apt install, remove, purge and upgrade, with nobody on the network to help."""

from __future__ import annotations

import re
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
LIMIT_KIB = 1024
LEFTOVERS = (
    "/etc/sockredird",
    "/run/sockredird",
    "/sys/fs/bpf/sockredird",
    "/usr/lib/python3/dist-packages/sockredird",
    "/usr/share/dbus-1/system.d/org.sockredir.conf",
    "/var/lib/sockredird",
    "/var/cache/sockredird",
)


def packages() -> set[str]:
    return set(sh("dpkg-query -W -f '${Package}\\n'").split())


@pytest.mark.userland
def test_apt_install(purged: None) -> None:
    before = packages()
    sh("apt install ./sockredird_*.deb")
    assert packages() - before == {"sockredird"}
    sh("systemctl is-enabled sockredird")
    sh("sockredirctl --version")


@pytest.mark.userland
def test_installed_size(installed: None) -> None:
    assert int(sh("dpkg-query -W -f '${Installed-Size}' sockredird")) < LIMIT_KIB


def needed_by(package: str) -> set[str]:
    """What apt installs with it where recommendations are not, of all this guest has."""
    answer = sh(f"apt-cache depends --recurse --installed --important {package} | grep '^[a-z0-9]'")
    return set(answer.split()) & packages()


@pytest.mark.userland
def test_no_compiler_and_no_headers(installed: None) -> None:
    """But for what python3-bpfcc itself depends on: the guest has others, for its tests."""
    needed = needed_by("sockredird")
    assert {"python3-bpfcc", "python3-dbus-next", "libbpf1"} <= needed
    more = needed - needed_by("python3-bpfcc")
    tools = re.compile(r"linux-(headers|libc-dev)|clang|llvm|gcc|g\+\+|cpp|make|libc6-dev")
    # gcc-14-base and the like hold no program
    assert not {name for name in more if tools.match(name) and not name.endswith("-base")}


@pytest.mark.userland
def test_manual_pages(installed: None) -> None:
    for page in ("8 sockredird", "8 sockredirctl", "5 sockredird.toml", "5 org.sockredir"):
        sh(f"man -w {page}")


@pytest.mark.userland
def test_completion(installed: None) -> None:
    # the name of the function that loads them differs between the releases
    sh(
        "source /usr/share/bash-completion/bash_completion; "
        "_comp_load sockredirctl || __load_completion sockredirctl; complete -p sockredirctl"
    )
    # what compinit looks for, without its reading a thousand other files
    find = "autoload -Uz +X _sockredirctl && head -n 1 $^fpath/_sockredirctl(N)"
    assert sh(f"zsh -f -c '{find}'") == "#compdef sockredirctl\n"


@pytest.mark.userland
def test_autopkgtest(running: None) -> None:
    """What Debian would run after an upload, without its machinery."""
    assert "redirected: 200 of 200 messages" in sh("./tests/installed")


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


@pytest.mark.userland
def test_purge_leaves_nothing(enabled: None) -> None:
    sh("apt-get purge -y sockredird")
    assert [path for path in LEFTOVERS if Path(path).exists()] == []
    assert not loaded()
    assert not sh("bpftool cgroup tree | grep sockredir || true")
    assert not sh("systemctl list-unit-files --no-legend 'sockredird*' || true")
    assert "org.sockredir" not in sh("busctl list --activatable --no-legend")


@pytest.mark.userland
def test_reinstall(purged: None) -> None:
    sh("apt install ./sockredird_*.deb")
    sh("systemctl start sockredird")
    compiled.put_back()
    sh("sockredirctl enable --timeout 150")
    with counted() as change, Pair() as pair:
        pair.send()
    assert (change.connections, change.messages) == (1, MESSAGES)
    sh("sockredirctl disable")


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
