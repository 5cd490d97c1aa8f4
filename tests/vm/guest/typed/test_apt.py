"""What apt installs, before anything else is tried: its name puts this file first."""

from __future__ import annotations

import re

import pytest
from shell import sh

pytestmark = pytest.mark.userland

LIMIT_KIB = 1024


def packages() -> set[str]:
    return set(sh("dpkg-query -W -f '${Package}\\n'").split())


def test_apt_install(purged: None) -> None:
    before = packages()
    sh("apt install ./sockredird_*.deb")
    assert packages() - before == {"sockredird"}
    sh("systemctl is-enabled sockredird")
    sh("sockredirctl --version")


def test_installed_size(installed: None) -> None:
    assert int(sh("dpkg-query -W -f '${Installed-Size}' sockredird")) < LIMIT_KIB


def needed_by(package: str) -> set[str]:
    """What apt installs with it where recommendations are not, of all this guest has."""
    answer = sh(f"apt-cache depends --recurse --installed --important {package} | grep '^[a-z0-9]'")
    return set(answer.split()) & packages()


def test_no_compiler_and_no_headers(installed: None) -> None:
    """But for what python3-bpfcc itself depends on: the guest has others, for its tests."""
    needed = needed_by("sockredird")
    assert {"python3-bpfcc", "python3-dbus-next", "libbpf1"} <= needed
    more = needed - needed_by("python3-bpfcc")
    tools = re.compile(r"linux-(headers|libc-dev)|clang|llvm|gcc|g\+\+|cpp|make|libc6-dev")
    # gcc-14-base and the like hold no program
    assert not {name for name in more if tools.match(name) and not name.endswith("-base")}


def test_manual_pages(installed: None) -> None:
    for page in ("8 sockredird", "8 sockredirctl", "5 sockredird.toml", "5 org.sockredir"):
        sh(f"man -w {page}")


def test_completion(installed: None) -> None:
    # the name of the function that loads them differs between the releases
    sh(
        "source /usr/share/bash-completion/bash_completion; "
        "_comp_load sockredirctl || __load_completion sockredirctl; complete -p sockredirctl"
    )
    # what compinit looks for, without its reading a thousand other files
    find = "autoload -Uz +X _sockredirctl && head -n 1 $^fpath/_sockredirctl(N)"
    assert sh(f"zsh -f -c '{find}'") == "#compdef sockredirctl\n"


def test_autopkgtest(running: None) -> None:
    """What Debian would run after an upload, without its machinery."""
    assert " of 200 messages\n" in sh("./tests/installed")
