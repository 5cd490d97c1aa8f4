"""What keeps a daemon from starting: one clear line, a telling exit status, nothing changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sockredird.__main__
from sockredird.kernel import libbpf
from sockredird.kernel.libbpf import Fd
from sockredird.kernel.libbpf_prototypes import lib
from sockredird.kernel.uapi import MapType
from support.daemon import load, pins
from support.daemon.bus import private_bus
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess, toml
from support.daemon.users import main_as_nobody
from support.pins import path as pin_path

WRONG_FILES = {
    "unknown table": ("[scopes]\n", "scopes"),
    "unknown key": ("[scope]\nport = 7\n", "scope.port"),
    "wrong type": ("[limits]\nwindow_bytes = '4 MiB'\n", "limits.window_bytes"),
    "table for a number": ("[limits.window_bytes]\n", "limits.window_bytes"),
    "list for a table": ("scope = []\n", "scope"),
    "list of tables": ("[[scope]]\n", "scope"),
    "too small": ("[limits]\nmax_connections = 0\n", "limits.max_connections"),
    "not a number": ("[limits]\ndrain_timeout_s = nan\n", "limits.drain_timeout_s"),
    "boolean": ("[limits]\ndrain_timeout_s = true\n", "limits.drain_timeout_s"),
    "relative path": ("[paths]\nstate = 'state/here'\n", "paths.state"),
    "unknown addresses": ("[scope]\naddresses = 'all'\n", "scope.addresses"),
    "excluded cgroup": ("[scope]\nexclude_cgroups = ['/']\n", "scope.exclude_cgroups"),
    "invalid TOML": ("[scope\n", "TOML"),
    "endless number": ("a = " + "1" * 5000 + "\n", "TOML"),
    "deep nesting": ("a = " + "[" * 5000 + "\n", "TOML"),
    "not text": ("\udcff", "cannot be read"),
}
SHOWN = 1000  # of what a daemon said that should have said one line


def check_refused(daemon: DaemonProcess, status: int, *words: str) -> None:
    assert daemon.wait() == status, daemon.stderr[-SHOWN:]
    lines = daemon.stderr.splitlines()
    assert len(lines) == 1, daemon.stderr[-SHOWN:]
    assert " ERROR " in lines[0]
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(("text", "word"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_file(host: Host, text: str, word: str) -> None:
    path = host.directory / "wrong.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    check_refused(host.launch(path), os.EX_CONFIG, str(path), word)
    assert not host.runtime.exists()
    assert not host.root.exists()


def test_directory_for_a_file(host: Host) -> None:
    check_refused(host.launch(host.directory), os.EX_CONFIG, str(host.directory), "cannot be read")


def test_no_file(host: Host) -> None:
    path = host.directory / "none.toml"
    check_refused(host.launch(path), os.EX_CONFIG, str(path), "no such file")


def test_no_bpffs(host: Host) -> None:
    place = host.directory / "elsewhere"
    host.overrides["paths"] = {"bpffs": str(place)}
    check_refused(host.launch(), os.EX_CONFIG, str(place), "BPF file system", "mount -t bpf")
    assert not place.exists()


def test_no_bus(host: Host) -> None:
    check_refused(host.launch(bus="unix:path=/nonexistent"), os.EX_UNAVAILABLE, "system bus")
    assert not host.root.exists()


def test_no_policy(host: Host) -> None:
    """The bus does not allow the name, as before the package's policy is installed."""
    with private_bus("<busconfig></busconfig>") as address:
        check_refused(host.launch(bus=address), os.EX_UNAVAILABLE, "org.sockredir.conf")


def test_not_root(host: Host) -> None:
    status, stderr = main_as_nobody(
        sockredird.__main__.main,
        *("--config", "/dev/null"),
        DBUS_SYSTEM_BUS_ADDRESS=host.bus,
    )
    assert status == os.EX_NOPERM
    assert len(stderr.splitlines()) == 1
    assert "root" in stderr


def create_map() -> Fd:
    """A map of a shape that none of ours has."""
    fd = lib.bpf_map_create(MapType.ARRAY, b"stranger", 4, 16, 3, None)
    assert fd >= 0
    return Fd(fd)


@contextmanager
def stranger(path: Path) -> Iterator[int]:
    """A map of somebody else's is pinned at `path` meanwhile; its id."""
    with create_map() as fd:
        before = libbpf.open_pin(path) if path.exists() else None
        if before is not None:
            path.unlink()
        libbpf.pin(fd, path)
        try:
            yield libbpf.map_info(fd).id
        finally:
            path.unlink()
            if before is not None:
                libbpf.pin(before, path)
                before.close()


def pinned_map(path: Path) -> int:
    with libbpf.open_pin(path) as fd:
        return int(libbpf.map_info(fd).id)


@pytest.mark.parametrize("name", ["of-somebody-else", "generation-7", "staging-7"])
def test_strange_pin(host: Host, name: str) -> None:
    host.root.mkdir()
    with stranger(host.root / name) as identity:
        check_refused(host.launch(), 1, str(host.root / name))
        assert pins.directories(host.root) == [name]
        assert pinned_map(host.root / name) == identity


@pytest.mark.parametrize("directory", ["staging-7", "generation-7"])
def test_strange_pin_in_a_directory(host: Host, directory: str) -> None:
    (host.root / directory).mkdir(parents=True)
    with stranger(host.root / directory / "somebody-elses") as identity:
        check_refused(host.launch(), 1, str(host.root / directory))
        assert pinned_map(host.root / directory / "somebody-elses") == identity
    (host.root / directory).rmdir()


@pytest.mark.parametrize(
    "pin", ["counters", "peers", "settings", "manifest", "requests", "pair", "members", "attached"]
)
def test_another_map_under_our_name(
    host: Host, daemon: DaemonProcess, enabled: Client, pin: str
) -> None:
    daemon.stop()
    generation = host.root / "generation-1"
    names = pins.directories(generation)
    path = pin_path(generation, pin)
    with stranger(path) as identity:
        check_refused(host.launch(), 1, str(path))
        assert pinned_map(path) == identity
        assert pins.directories(generation) == names
    # once it is gone, all is as before
    host.start()
    assert host.client().get("State") == "enabled"


@pytest.mark.parametrize("same", ["bus and runtime", "bus", "runtime"])
def test_second_daemon(host: Host, daemon: DaemonProcess, enabled: Client, same: str) -> None:
    traffic = host.actor()
    traffic.do(load.start, 2)
    before = pins.ids(host.root)
    tables = {name: dict(table) for name, table in host.tables().items()}
    if "runtime" not in same:
        tables["paths"]["runtime"] = str(host.directory / "other-runtime")
    config = host.directory / "second.toml"
    config.write_text(toml(tables))
    with private_bus() as other:
        second = host.launch(config, bus=host.bus if "bus" in same else other)
        words = [str(daemon.pid)] if "runtime" in same else []
        check_refused(second, os.EX_UNAVAILABLE, "another sockredird", *words)
    assert daemon.running
    assert enabled.get("State") == "enabled"
    assert pins.ids(host.root) == before
    traffic.do(load.advance, 20)
    assert enabled.call("Stats")["redirected_messages"] > 0
    traffic.do(load.finish)
