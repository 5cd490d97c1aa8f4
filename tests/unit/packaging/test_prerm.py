"""What removing the package does where sockredirctl cannot reach a daemon."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sockredird.datapath import links
from support.checkout import REPOSITORY

PRERM = REPOSITORY / "packaging" / "debian" / "sockredird.prerm"
PINS = "/sys/fs/bpf/sockredird"
KEPT = {"attached-guard-4711", "pair", "peers", "manifest"}


def prerm(directory: Path, *, disable: str) -> subprocess.CompletedProcess[str]:
    """Over pins in a directory, with a sockredirctl that is that shell command."""
    ctl = directory / "bin" / "sockredirctl"
    ctl.parent.mkdir()
    ctl.write_text(f"#!/bin/sh\n{disable}\n")
    ctl.chmod(0o755)
    script = PRERM.read_text()
    assert PINS in script
    return subprocess.run(
        ["sh", "-c", script.replace(PINS, str(directory / "pins")), "prerm", "remove"],
        env={"PATH": f"{ctl.parent}:/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def generation(tmp_path: Path) -> Path:
    directory = tmp_path / "pins" / "generation-3"
    directory.mkdir(parents=True)
    for name in KEPT | {"attached-pair-4711", "attached-pair-815"}:
        (directory / name).touch()
    assert len(links.pinned(directory)) == 3
    return directory


def test_without_a_daemon(tmp_path: Path, generation: Path) -> None:
    """New connections are plain TCP; what is live keeps what it needs."""
    done = prerm(tmp_path, disable="echo the daemon does not run >&2; exit 3")
    assert {path.name for path in generation.iterdir()} == KEPT
    first, second = done.stderr.splitlines()
    assert first == "sockredird: cannot disable it: the daemon does not run"
    assert str(generation) in second


def test_readers_that_do_not_read(tmp_path: Path, generation: Path) -> None:
    """Disable has done what could be done."""
    before = {path.name for path in generation.iterdir()}
    done = prerm(tmp_path, disable="exit 0")
    assert {path.name for path in generation.iterdir()} == before
    assert str(generation) in done.stderr


def test_nothing_is_left(tmp_path: Path) -> None:
    assert prerm(tmp_path, disable="exit 0").stderr == ""
