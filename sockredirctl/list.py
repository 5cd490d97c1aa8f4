"""`sockredirctl list`: accelerated connections, busiest first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from dbus_next import Variant

from sockredirctl import render
from sockredirctl.client import Client

DEFAULT_LIMIT = 100
REPLY_LIMIT = 1000  # of Connections(); more come through a pipe

Connection = dict[str, Any]


def both(connection: Connection, key: str) -> int:
    """A number of both ends together; of an end that has closed nothing is known."""
    return int(connection.get(f"client_{key}", 0) + connection.get(f"server_{key}", 0))


SORTS: dict[str, Callable[[Connection], float]] = {
    "bytes": lambda c: both(c, "sent_bytes"),
    "messages": lambda c: both(c, "sent_messages"),
    "rate": lambda c: both(c, "bytes_per_second"),
    "message_rate": lambda c: both(c, "messages_per_second"),
    "unread": lambda c: both(c, "unread_bytes"),
    "age": lambda c: c["age_seconds"],
}


def add_arguments(command: argparse.ArgumentParser, port: Callable[[str], int]) -> None:
    command.add_argument(
        "--limit",
        type=int,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"show the first N, 0 for all (default: {DEFAULT_LIMIT})",
    )
    command.add_argument(
        "--sort", choices=SORTS, default="bytes", help="largest first (default: bytes)"
    )
    command.add_argument("--port", type=port, metavar="PORT", help="with this port at either end")
    command.add_argument("--pid", type=int, metavar="PID", help="that this process has open")
    command.add_argument("--unit", metavar="UNIT", help="of this systemd unit, or cgroup")


async def fetch(
    client: Client, limit: int, sort: str = "bytes", **filters: Any
) -> list[Connection]:
    query: dict[str, Variant] = {"sort": Variant("s", sort)}
    for name, value in filters.items():
        if value is not None:
            query[name] = Variant("s" if isinstance(value, str) else "u", value)
    if 0 < limit <= REPLY_LIMIT:
        connections: list[Connection] = await client.call("ConnectionsWith", "ua{sv}", limit, query)
        return connections
    connections = await client.all_connections(query)
    connections.sort(key=SORTS[sort], reverse=True)
    return connections[: limit or None]


async def run(client: Client, arguments: argparse.Namespace) -> None:
    connections = await fetch(
        client,
        arguments.limit,
        arguments.sort,
        port=arguments.port,
        pid=arguments.pid,
        unit=arguments.unit,
    )
    if arguments.json:
        print(json.dumps(connections))
    elif connections:
        print(_table(render.printable(connections)))


def who(connection: Connection, side: str) -> str:
    """The program at one end, e.g. 'redis-server[812]'; one that sends no more is not known."""
    if f"{side}_sent_bytes" not in connection:
        return "(ended)"
    pid = connection.get(f"{side}_pid", 0)
    return f"{connection[f'{side}_comm']}[{pid}]" if pid else "-"


def _table(connections: list[Connection]) -> str:
    header = ("CLIENT", "SERVER", "PROGRAMS", "UNIT", "AGE", "SENT", "RECEIVED", "QUEUED", "STATE")
    rows = [header]
    for c in connections:
        units = {c.get("client_unit", ""), c.get("server_unit", "")} - {""}
        rows.append(
            (
                c["client"],
                _server(c),
                f"{who(c, 'client')} > {who(c, 'server')}",
                ",".join(sorted(units)) or "-",
                render.duration(c["age_seconds"]),
                _carried(c, "client"),
                _carried(c, "server"),
                render.bytes_(both(c, "unread_bytes")),
                f"leaving ({c['reason']})" if c["leaving"] else "accelerated",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _server(c: Connection) -> str:
    """Where the client wanted to go, and where NAT has led it."""
    return f"{c['server']} ({c['accepted_at']})" if "accepted_at" in c else str(c["server"])


def _carried(c: Connection, side: str) -> str:
    if f"{side}_sent_bytes" not in c:
        return "?"
    carried = f"{render.bytes_(c[f'{side}_sent_bytes'])}/{c[f'{side}_sent_messages']}"
    tcp = c[f"{side}_tcp_bytes"]
    return carried + (f"+{render.bytes_(tcp)} by TCP" if tcp else "")
