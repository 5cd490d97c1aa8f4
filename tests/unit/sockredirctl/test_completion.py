"""Completion knows the commands, options and choices that the parser knows, in bash and in zsh."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sockredirctl.__main__ import _parser
from sockredird.kernel.cgroup import mount_point
from support.checkout import REPOSITORY
from support.commands import commands, long_options

HERE = Path(__file__).parent
COMPLETIONS = REPOSITORY / "completions"
COMMANDS = {
    "bash": ["bash", str(HERE / "complete.bash"), str(COMPLETIONS / "sockredirctl.bash")],
    "zsh": ["zsh", "-f", str(HERE / "complete.zsh"), str(COMPLETIONS / "_sockredirctl")],
}
TIMEOUT_S = 60
# Names as systemd escapes them
UNITS = ["redis-server.service", r"system-serial\x2dgetty.slice"]

Complete = Callable[..., set[str]]


PARSERS = commands()


@pytest.fixture(params=COMMANDS)
def complete(request: pytest.FixtureRequest, tmp_path: Path) -> Complete:
    """What the last of some words is completed to."""
    systemctl = tmp_path / "systemctl"
    lines = "".join(f"{unit} loaded active running Something\n" for unit in UNITS)
    systemctl.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}END\n")
    systemctl.chmod(0o755)

    def complete(*words: str) -> set[str]:
        done = subprocess.run(
            [*COMMANDS[request.param], *words],
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TERM": "dumb"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        assert done.stderr == ""
        # bash has to quote them itself, zsh does
        return {line.replace(r"\\", "\\") for line in done.stdout.splitlines()}

    return complete


def test_commands(complete: Complete) -> None:
    assert complete("") == set(PARSERS)
    assert complete("st") == {name for name in PARSERS if name.startswith("st")}
    assert complete("--") == long_options(_parser())


@pytest.mark.parametrize("command", PARSERS)
def test_options(complete: Complete, command: str) -> None:
    assert complete(command, "--") == long_options(PARSERS[command])


@pytest.mark.parametrize(
    ("command", "option", "choices"),
    [
        (name, action.option_strings[-1], set(action.choices))
        for name, parser in PARSERS.items()
        for action in parser._actions
        if action.choices
    ],
)
def test_choices(complete: Complete, command: str, option: str, choices: set[str]) -> None:
    assert complete(command, option, "") == choices


def test_option_with_an_equals_sign(complete: Complete, request: pytest.FixtureRequest) -> None:
    # bash makes three words of it, zsh one
    words = ("--sort", "=", "me") if "bash" in request.node.name else ("--sort=me",)
    assert complete("list", *words) == {"messages", "message_rate"}


def test_ports_of_listeners(complete: Complete) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with socket.create_connection(listener.getsockname()) as client:
            found = complete("explain", "--port", "")
            assert port in found
            assert str(client.getsockname()[1]) not in found


def test_units(complete: Complete) -> None:
    assert complete("list", "--unit", "") == set(UNITS)
    assert complete("list", "--unit", "red") == {UNITS[0]}


def test_processes(complete: Complete) -> None:
    assert str(os.getpid()) in complete("explain", "--pid", str(os.getpid()))


def _cgroups() -> set[str]:
    return {f"/{path.name}" for path in mount_point().iterdir() if path.is_dir()}


def test_cgroups(complete: Complete, request: pytest.FixtureRequest) -> None:
    if os.geteuid() == 0:  # anybody else has to do with those that are there
        request.getfixturevalue("cgroup")
    before = _cgroups()
    found = {path.rstrip("/") for path in complete("enable", "--cgroup", "/")}
    lasting = before & _cgroups()  # others make cgroups, and remove them, meanwhile
    if not lasting:
        pytest.skip("this host has no cgroup but the root")
    assert lasting <= found
