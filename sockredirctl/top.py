"""`sockredirctl top`: a live table, busiest first."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sockredirctl import render
from sockredirctl.client import Client
from sockredirctl.errors import ClientError
from sockredirctl.list import Connection, both, fetch

KEYS = {
    "r": "rate",
    "m": "message_rate",
    "b": "bytes",
    "n": "messages",
    "u": "unread",
    "a": "age",
}
HELP = "sort: r rate, m messages/s, b bytes, n messages, u unread, a age; q quits"
HEAD_LINES = 6  # above the rows of the table


class Totals:
    """Counters, and their rates per second since the update before."""

    def __init__(self, properties: dict[str, Any], stats: dict[str, int]) -> None:
        self.properties = properties
        self.stats = stats
        self.time = time.monotonic()
        self.rates: dict[str, float] = {}

    def since(self, before: Totals | None) -> Totals:
        if before is not None:
            seconds = max(self.time - before.time, 0.001)
            for name, value in self.stats.items():
                self.rates[name] = max(value - before.stats[name], 0) / seconds
        return self


async def run(client: Client, arguments: argparse.Namespace) -> None:
    interval = max(arguments.interval, 0.5)
    if arguments.json:
        while True:
            totals, connections = await _look(client, arguments.sort, 100)
            answer = {**totals.properties, "Stats": totals.stats, "Connections": connections}
            print(json.dumps(answer), flush=True)
            await asyncio.sleep(interval)
    console = Console()
    if not (console.is_terminal and sys.stdin.isatty()) or console.is_dumb_terminal:
        raise ClientError(
            "top needs a terminal; `list --sort rate` shows the same once, `top --json` in a pipe"
        )
    await _show(client, console, arguments.sort, interval)


async def _look(client: Client, sort: str, rows: int) -> tuple[Totals, list[Connection]]:
    totals = Totals(await client.properties(), await client.call("Stats"))
    return totals, await fetch(client, max(rows, 1), sort)


async def _show(client: Client, console: Console, sort: str, interval: float) -> None:
    pressed: asyncio.Queue[str] = asyncio.Queue()
    before: Totals | None = None
    with _keys(pressed), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            rows = console.height - HEAD_LINES
            totals, connections = await _look(client, sort, rows)
            before = totals.since(before)
            live.update(
                screen(totals, render.printable(connections), sort, console.width), refresh=True
            )
            try:
                key = await asyncio.wait_for(pressed.get(), interval)
            except TimeoutError:
                continue
            if key in ("q", "\x03"):
                return
            sort = KEYS.get(key, sort)


@contextmanager
def _keys(pressed: asyncio.Queue[str]) -> Iterator[None]:
    """Single key presses, without Enter and without an echo."""
    loop = asyncio.get_running_loop()
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)

    def read() -> None:
        # not through sys.stdin, whose read-ahead the event loop does not see
        for key in os.read(sys.stdin.fileno(), 64).decode(errors="replace") or "q":
            pressed.put_nowait(key)

    loop.add_reader(sys.stdin, read)
    try:
        yield
    finally:
        loop.remove_reader(sys.stdin)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def screen(totals: Totals, connections: list[Connection], sort: str, width: int) -> Group:
    stats, rates = totals.stats, totals.rates
    state = totals.properties["State"]
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append(f"sockredird {state}", style="bold green" if state == "enabled" else "bold yellow")
    head.append(
        f", {stats['active_connections']} connections, "
        f"{render.bytes_(round(rates.get('redirected_bytes', 0)))}/s, "
        f"{rates.get('redirected_messages', 0):,.0f} messages/s\n"
        f"new {rates.get('accelerated_connections', 0):.0f}/s, "
        f"declined {rates.get('declined_connections', 0):.0f}/s, "
        f"retired {rates.get('retired_connections', 0):.0f}/s; in all "
        f"{stats['accelerated_connections']} accelerated, "
        f"{render.bytes_(stats['redirected_bytes'])}\n"
    )
    head.append(HELP, style="dim")
    return Group(head, _table(connections, sort))


def _table(connections: list[Connection], sort: str) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="reverse")
    for title, key in (
        ("CLIENT", ""),
        ("SERVER", ""),
        ("BYTES/S", "rate"),
        ("MSG/S", "message_rate"),
        ("BYTES", "bytes"),
        ("UNREAD", "unread"),
        ("AGE", "age"),
    ):
        table.add_column(
            f"{title}*" if key == sort else title,
            justify="right" if key else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=None if key else 1,
        )
    for c in connections:
        table.add_row(
            _end(c, "client"),
            _end(c, "server"),
            render.bytes_(both(c, "bytes_per_second")),
            f"{both(c, 'messages_per_second'):,}",
            render.bytes_(both(c, "sent_bytes")),
            render.bytes_(both(c, "unread_bytes")),
            render.duration(c["age_seconds"]),
            style="yellow" if c["leaving"] else None,
        )
    return table


def _end(connection: Connection, side: str) -> str:
    """Program and port, which tell connections apart where a whole address has no room."""
    port = connection[side].rpartition(":")[2]
    return f"{connection.get(f'{side}_comm') or '-'}:{port}"
