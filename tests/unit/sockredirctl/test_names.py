"""No command lets a name draw on the terminal or add a line; --json shows it exactly."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from sockredirctl import __main__ as main
from sockredirctl import top
from sockredird.loader.records import COUNTERS

HOSTILE = "\x1b[31mA\nB\x07\xff\x9b2J\r\u202e\x00"
HARMLESS = "redis"
COUNTS = dict.fromkeys([*COUNTERS, "active_connections", "map_entries", "map_capacity"], 1)
STATS = COUNTS | {"declined_connections": 1, "retired_connections": 1, "dropped_events": 0}


def end(side: str, name: str) -> dict[str, Any]:
    numbers = ("sent_bytes", "sent_messages", "tcp_bytes", "bytes_per_second")
    return {
        **{f"{side}_{key}": 1 for key in (*numbers, "messages_per_second", "unread_bytes")},
        **{f"{side}_pid": 7, f"{side}_comm": name, f"{side}_unit": name, f"{side}_cgroup": name},
        **{f"{side}_uid": 0, f"{side}_inode": 1, f"{side}_mode": "redirected"},
        **{f"{side}_processes": 1},
    }


def connection(name: str, leaving: bool) -> dict[str, Any]:
    where = {"client": "127.0.0.1:7", "server": "127.0.0.1:8", "netns": 1}
    ends = end("client", name) | end("server", name)
    return where | ends | {"age_seconds": 1.0, "leaving": leaving, "reason": "disable"}


def answers(name: str) -> dict[str, Any]:
    """What each member of the bus object could answer where something is called `name`."""
    listener = {"kind": "listener", "server": "127.0.0.1:8", "state": "in_scope"}
    return {
        "ConnectionsWith": [connection(name, False), connection(name, True)],
        "Stats": STATS,
        "Check": [{"name": "host", "status": "warn", "detail": f"{name} is there"}],
        "Learned": [
            {"id": "host:8", "netns": 1, "port": 8, "why": "rcvlowat", "since": 1, "pid": 7}
            | {"comm": name, "cgroup": name, "detail": f"{name} did it"}
        ],
        "Explain": [
            listener | end("server", name) | {"reason": "x", "detail": name},
            connection(name, False) | {"kind": "connection", "state": "tcp", "detail": name},
        ],
        "Bench": [],
        "BenchWith": {"rows": [], "estimate": {}},
        "properties": {
            "Version": "0.1.0",
            "State": "enabled",
            "Since": 1,
            "Units": {name: ""},
            "Problem": f"{name} was removed",
            "LiveConnections": {
                "looks": 2,
                "eligible": 1,
                "joined": 1,
                "left": [{"unit": name, "reason": "", "connections": 1, "detail": ""}],
            },
            "Kernel": {"release": "6.1", "checked": True, "passed": 1, "warned": 0}
            | {"noted": 0, "failed": 0},
            "Sources": {"cgroup": "file"},
            "Scope": {"addresses": "loopback", "units": [], "cgroup": name, "only_ports": [7]}
            | {"exclude_ports": [8], "exclude_cgroups": [name], "exclude_units": [name]},
        },
        "event": {"time": 1, "event": "retired", "reason": "x", "dropped": 0, "netns": 1}
        | {"client": "127.0.0.1:7", "server": "127.0.0.1:8"}
        | end("client", name)
        | end("server", name),
    }


class Fake:
    """In the place of the client: answers as a daemon would that has met such a name."""

    def __init__(self, name: str) -> None:
        self._answers = answers(name)

    async def call(self, member: str, *_arguments: Any, **_keys: Any) -> Any:
        if member == "Disable":
            self._answers["properties"]["State"] = "draining"
        elif member == "DisableWith":
            self._answers["ConnectionsWith"] = []
        return self._answers.get(member)

    async def properties(self) -> Any:
        return self._answers["properties"]

    async def all_connections(self, _query: Any) -> Any:
        return self._answers["ConnectionsWith"]

    async def events(
        self, show: Callable[[dict[str, Any]], None], begun: Callable[[], Awaitable[None]]
    ) -> None:
        await begun()
        show(self._answers["event"])


COMMANDS = {
    "enable": ["enable", "--exclude-port", "9"],
    "disable": ["disable", "--force"],
    "status": ["status"],
    "stats": ["stats"],
    "list": ["list"],
    "list of all": ["list", "--limit", "0"],
    "trace": ["trace"],
    "check": ["check"],
    "learned": ["learned"],
    "explain": ["explain", "--port", "8"],
}


def printed(arguments: list[str], name: str) -> str:
    parsed: argparse.Namespace = main._parser().parse_args(arguments)
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(stdout):
        asyncio.run(parsed.function(Fake(name), parsed))
    return stdout.getvalue()


def on_screen(name: str) -> str:
    """What top shows."""
    given = answers(name)
    totals = top.Totals(given["properties"], given["Stats"])
    console = Console(file=io.StringIO(), force_terminal=False, width=200, color_system=None)
    shown = main.render.printable(given["ConnectionsWith"])
    console.print(top.screen(totals, shown, "rate", 200))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def check(text: str, lines: int) -> None:
    assert all(line.isprintable() for line in text.split("\n")), repr(text)
    assert text.count("\n") == lines, repr(text)


NAMES = st.text(st.characters(blacklist_categories=["Cs"]), max_size=15)


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_commands(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10000")  # status would fold its lines
    expected = printed(arguments, HARMLESS).count("\n")
    assert expected

    @given(NAMES)
    @example(HOSTILE)
    @example(HOSTILE * 10)
    @settings(max_examples=30, suppress_health_check=list(HealthCheck))
    def holds(name: str) -> None:
        check(printed(arguments, name), expected)

    holds()


@given(NAMES)
@example(HOSTILE)
@settings(max_examples=30)
def test_top(name: str) -> None:
    check(on_screen(name), on_screen(HARMLESS).count("\n"))


@pytest.mark.parametrize(
    "arguments", [["list"], ["learned"], ["check"], ["explain", "--port", "8"]]
)
def test_json_is_exact(arguments: list[str]) -> None:
    shown = json.loads(printed([*arguments, "--json"], HOSTILE))
    assert (
        shown
        == answers(HOSTILE)[
            {"list": "ConnectionsWith"}.get(arguments[0], arguments[0].capitalize())
        ]
    )
