"""systemctl start, restart, stop: the datapath does not depend on the daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from pair import MESSAGES, Pair
from shell import Failed, sh
from status import BUSCTL, counted, state

CONFIG = "/etc/sockredird/sockredird.toml"


@pytest.fixture
def edit() -> Iterator[Callable[[str, str], None]]:
    """Puts a line into a section of the configuration, until the test ends."""
    sh(f"cp {CONFIG} /root/kept.toml")
    yield lambda section, line: print(sh(f"sed -i 's/^.{section}.$/&\\n{line}/' {CONFIG}"))
    sh(f"cp /root/kept.toml {CONFIG}")
    sh("systemctl reload sockredird")


def test_start(installed: None) -> None:
    sh("systemctl start sockredird")
    assert "active (running)" in sh("systemctl status --no-pager sockredird")


@pytest.mark.userland
def test_systemd_analyze_verify(installed: None) -> None:
    unit = sh("systemctl show -P FragmentPath sockredird").strip()
    assert sh(f"systemd-analyze verify --man=no {unit}") == ""


def test_enable_and_disable(disabled: None) -> None:
    sh("sockredirctl enable")
    assert state() == "enabled"
    assert "State: enabled" in sh("sockredirctl status")
    with Pair() as pair:
        with counted() as change:
            pair.send()
        assert change.messages == MESSAGES
        sh("sockredirctl disable")
        assert state() == "disabled"
        pair.send()


@pytest.mark.userland
def test_reload(disabled: None, edit: Callable[[str, str], None]) -> None:
    edit("scope", "exclude_ports = [21, 4711]")
    sh("systemctl reload sockredird")
    assert " 4711 " in sh(BUSCTL.format("get-property", "Scope"))


@pytest.mark.userland
def test_reload_of_a_mistake(enabled: None, edit: Callable[[str, str], None]) -> None:
    """systemctl reload waits for the daemon, which goes on as before."""
    edit("limits", "no_such_setting = 1")
    with pytest.raises(Failed):
        sh("systemctl reload sockredird")
    assert "no_such_setting" in sh("journalctl -u sockredird --no-pager | tail -n 20")
    assert state() == "enabled"
    with Pair() as pair, counted() as change:
        pair.send()
    assert change.messages == MESSAGES


def test_restart_leaves_the_datapath(enabled: None) -> None:
    with Pair() as pair, counted() as change:
        sh("systemctl restart sockredird")
        pair.send()
    assert state() == "enabled"
    assert change.messages == MESSAGES


def test_stop_leaves_the_datapath(enabled: None) -> None:
    with Pair() as pair, counted() as change:
        sh("systemctl stop sockredird")
        sh("ls /sys/fs/bpf/sockredird/generation-*/attached-pair-*")
        pair.send()
        with Pair() as other:
            other.send()
        sh("systemctl start sockredird")
    assert (change.connections, change.messages) == (1, 2 * MESSAGES)


def test_killed_it_comes_back(enabled: None) -> None:
    restarts = "systemctl show -P NRestarts sockredird"
    before = sh(restarts).strip()
    sh("systemctl kill -s KILL sockredird")
    sh(f"while [ $({restarts}) = {before} ]; do sleep 1; done")
    sh("while [ $(systemctl is-active sockredird) = activating ]; do sleep 1; done")
    assert state() == "enabled"
