"""A bad file is named at once: by sockredird --check-config, and by the client without a daemon."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

import sockredird.__main__
from support.daemon.host import Host
from support.daemon.process import COMMAND, environment
from support.daemon.users import main_as_nobody

NOT_RUNNING = 3
AT_ONCE_S = 10.0  # the bus waits for 25 s for what it starts
WRONG = "\n[limits]\nwindow_bytes = '4 MiB'\n"
COMMANDS = (("status",), ("stats",), ("enable",), ("list",), ("check",))


def check(host: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--check-config", *arguments],
        # as in a shell that a unit of the desktop has started
        env=environment("unix:path=/nonexistent", JOURNAL_STREAM="8:1"),
        capture_output=True,
        text=True,
        check=False,
    )


def test_right(host: Host) -> None:
    done = check(host, str(host.configure()))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not host.root.exists()
    assert not host.runtime.exists()


def test_wrong(host: Host) -> None:
    path = host.configure(WRONG)
    done = check(host, str(path))
    assert (done.returncode, done.stdout) == (os.EX_CONFIG, "")
    (line,) = done.stderr.splitlines()
    # and nothing before it, as a log would have
    assert line.startswith(f"{path}: line 3: limits.window_bytes: must be a whole number of bytes")
    assert '"4 MiB"' in line


def test_no_such_file(host: Host) -> None:
    done = check(host, str(host.directory / "none.toml"))
    assert done.returncode == os.EX_CONFIG
    assert "no such file" in done.stderr


def test_the_one_that_is_installed() -> None:
    done = subprocess.run([*COMMAND, "--check-config"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_as_nobody(host: Host) -> None:
    status, stderr = main_as_nobody(sockredird.__main__.main, "--check-config", "/dev/null")
    assert (status, stderr) == (0, "")


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_the_client_names_it(host: Host, arguments: tuple[str, ...]) -> None:
    path = host.configure(WRONG)
    started = time.monotonic()
    done = host.ctl(*arguments)
    assert time.monotonic() - started < AT_ONCE_S
    assert (done.returncode, done.stdout) == (NOT_RUNNING, "")
    (line,) = done.stderr.splitlines()
    assert f"{path}: line 3: limits.window_bytes: must be" in line
    assert "systemctl start sockredird" in line or "try again" in line
