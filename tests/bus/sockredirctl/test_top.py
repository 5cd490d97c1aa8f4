"""top shows what list shows; on a terminal it fits, sorts and ends by its keys."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support import mix
from support.checkout import REPOSITORY
from support.daemon.actor import Actor
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import PYTHON, environment

WIDTH, HEIGHT = 80, 24
REDIS, HTTP = 6, 4
TIMEOUT_S = 20.0
CURSOR = re.compile(r"\x1b\[[0-9;]*[A-HJKf]")
COLOUR = re.compile(r"\x1b\[[0-9;?]*[a-z]")
# what changes by itself between two looks
MOVING = re.compile(r"age_seconds|.*_per_second")


@pytest.fixture
def traffic(host: Host, enabled: Client) -> Iterator[Actor]:
    """Connections that have talked and wait."""
    actor = host.actor()
    actor.do(mix.serve)
    actor.do(mix.talk, REDIS, HTTP, 2)
    yield actor
    actor.do(mix.stop)


def settled(connections: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """By both addresses: a client's port may be used towards two servers at once."""
    return {
        (one["client"], one["server"]): {
            key: value for key, value in one.items() if not MOVING.fullmatch(key)
        }
        for one in connections
    }


def test_the_same_as_list(host: Host, traffic: Actor, ask: Callable[..., Any]) -> None:
    listed = ask("list", "--sort", "messages")
    with host.ctl_process("top", "--json", "--sort", "messages") as top:
        assert top.stdout is not None
        shown = json.loads(top.stdout.readline())
        assert settled(shown["Connections"]) == settled(listed)
        assert shown["Stats"] == ask("stats")
        carried = shown["Stats"]["redirected_bytes"]
        assert sum(both_sent(one) for one in shown["Connections"]) == carried
        traffic.do(mix.talk, 1, 0, 1)
        # the next line, or one after it, has the new connection
        while len(shown["Connections"]) == len(listed):
            shown = json.loads(top.stdout.readline())
        assert settled(shown["Connections"]) == settled(ask("list"))


def both_sent(one: dict[str, Any]) -> int:
    return int(one["client_sent_bytes"] + one["server_sent_bytes"])


class Screen:
    """`sockredirctl top` on a terminal, and what it has drawn so far."""

    def __init__(self, host: Host) -> None:
        self._end, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", HEIGHT, WIDTH, 0, 0))
        self.process = subprocess.Popen(
            [PYTHON, "-m", "sockredirctl", "top"],
            env=environment(host.bus, TERM="xterm", COLUMNS="", LINES=""),
            cwd=REPOSITORY,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            # its controlling terminal, which turns ^C into SIGINT
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.drawn = ""

    def until(self, wanted: str) -> list[str]:
        """Lines drawn since the last call, up to those that have the text."""
        deadline = time.monotonic() + TIMEOUT_S
        while wanted not in self.drawn:
            left = deadline - time.monotonic()
            assert select.select([self._end], [], [], max(left, 0))[0], self.drawn[-3000:]
            text = os.read(self._end, 65536).decode()
            self.drawn += COLOUR.sub("", CURSOR.sub("\n", text))
        lines = self.drawn.splitlines()
        self.drawn = ""
        return lines

    def press(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)


@pytest.fixture
def screen(host: Host, traffic: Actor) -> Iterator[Screen]:
    screen = Screen(host)
    yield screen
    screen.close()


def test_on_a_terminal(screen: Screen, traffic: Actor) -> None:
    lines = screen.until("redis-server")
    assert any(f"{REDIS + HTTP} connections" in line for line in lines)
    assert any("BYTES/S*" in line for line in lines)
    screen.press("xb")  # one that is no key, and two at once
    lines += screen.until("BYTES*")
    assert max(map(len, lines)) <= WIDTH
    screen.press("q")
    assert screen.process.wait(TIMEOUT_S) == 0


def test_interrupted(screen: Screen) -> None:
    screen.until("redis-server")
    screen.press("\x03")
    assert screen.process.wait(TIMEOUT_S) == 0
