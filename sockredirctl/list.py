"""`sockredirctl list`: accelerated connections, busiest first."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from dbus_next import Variant

from sockredirctl import nothing, render, table, values
from sockredirctl.client import Client
from sockredirctl.table import Column

DEFAULT_LIMIT = 100
REPLY_LIMIT = 1000  # of Connections(); more come through a pipe

Connection = dict[str, Any]


def both(connection: Connection, key: str) -> int:
    """The sum of a number over both ends; it is not known of an end that has closed."""
    return int(connection.get(f"client_{key}", 0) + connection.get(f"server_{key}", 0))


SORTS: dict[str, Callable[[Connection], float]] = {
    "bytes": lambda c: both(c, "sent_bytes"),
    "messages": lambda c: both(c, "sent_messages"),
    "rate": lambda c: both(c, "bytes_per_second"),
    "message_rate": lambda c: both(c, "messages_per_second"),
    "unread": lambda c: both(c, "unread_bytes"),
    "age": lambda c: c["age_seconds"],
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    table.add_arguments(command)
    command.add_argument(
        "--limit",
        type=values.count,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"show the first N, 0 for all (default: {DEFAULT_LIMIT})",
    )
    command.add_argument(
        "--sort", choices=SORTS, default="bytes", help="largest first (default: bytes)"
    )
    add_filters(command)


def add_filters(command: argparse.ArgumentParser) -> None:
    """The options that say which connections are meant."""
    command.add_argument(
        "--port",
        type=values.port,
        metavar="PORT",
        help="those with this port, a number or a service, at either end",
    )
    command.add_argument(
        "--pid", metavar="PROCESS", help="those of this process: its pid, name, or systemd unit"
    )
    command.add_argument("--unit", metavar="UNIT", help="those of this systemd unit or cgroup")


def filters(arguments: argparse.Namespace) -> dict[str, Variant]:
    """The keys of a query. Raises ClientError if there is no such process."""
    keys: dict[str, Variant] = {}
    if arguments.port is not None:
        keys["port"] = Variant("u", arguments.port)
    if arguments.pid is not None:
        keys |= values.process(arguments.pid)
    if arguments.unit is not None:
        keys["unit"] = Variant("s", arguments.unit)
    return keys


async def fetch(
    client: Client, limit: int, sort: str = "bytes", keys: dict[str, Variant] | None = None
) -> list[Connection]:
    query = {"sort": Variant("s", sort), **(keys or {})}
    if 0 < limit <= REPLY_LIMIT:
        connections: list[Connection] = await client.call("ConnectionsWith", "ua{sv}", limit, query)
        return connections
    connections = await client.all_connections(query)
    connections.sort(key=SORTS[sort], reverse=True)
    return connections[: limit or None]


async def run(client: Client, arguments: argparse.Namespace) -> None:
    """Raises ClientError if there are none of those that were asked for."""
    keys = filters(arguments)
    connections = await fetch(client, arguments.limit, arguments.sort, keys)
    if arguments.json:
        print(json.dumps(connections))
    elif connections:
        table.show(_text(render.printable(connections), arguments), pager=not arguments.no_pager)
    if connections:
        return
    error = await nothing.why(
        client,
        keys,
        "no such connection is accelerated; sockredirctl explain says why"
        if keys
        else "no connection is accelerated now; sockredirctl status says how many were",
    )
    if keys:
        raise error
    if not arguments.json:
        print(f"sockredirctl: {error}", file=sys.stderr)


def who(connection: Connection, side: str) -> str:
    """The program at one end, e.g. 'redis-server[812]'; not known once that end sends no more."""
    if f"{side}_sent_bytes" not in connection:
        return "(ended)"
    pid = connection.get(f"{side}_pid", 0)
    return f"{connection[f'{side}_comm']}[{pid}]" if pid else "-"


_SHORT = (
    Column("CLIENT", 0, least=14),
    Column("SERVER", 0, least=14),
    Column("CLIENT PROGRAM", 1, least=10),
    Column("SERVER PROGRAM", 1, least=10),
    Column("UNIT", 5, least=12),
    Column("AGE", 6, right=True),
    Column("SENT", 2, right=True),
    Column("RECEIVED", 2, right=True),
    Column("UNREAD", 4, right=True),
    Column("STATE", 3, least=len("accelerated")),
)
_WIDE = (
    *_SHORT[:6],
    Column("ACCEPTED AT", 0),
    Column("BYTES SENT", 0, right=True),
    Column("MESSAGES SENT", 0, right=True),
    Column("BYTES RECEIVED", 0, right=True),
    Column("MESSAGES RECEIVED", 0, right=True),
    Column("BY TCP", 0, right=True),
    Column("UNREAD", 0, right=True),
    Column("STATE", 0),
)


def _text(connections: list[Connection], arguments: argparse.Namespace) -> str:
    """Sizes are in bytes, as seen from the client."""
    if arguments.output == "wide":
        return table.text(_WIDE, [_wide(c) for c in connections], None)
    rows = [(*_head(c), *_short(c)) for c in connections]
    lines = table.text(_SHORT, rows, table.width(arguments)).splitlines()
    shown = [
        table.coloured(line, "yellow") if c["leaving"] else line
        for line, c in zip(lines[1:], connections, strict=True)
    ]
    return "\n".join([lines[0], *shown])


def _head(c: Connection) -> tuple[str, ...]:
    units = {c.get("client_unit", ""), c.get("server_unit", "")} - {""}
    return (
        c["client"],
        c["server"],
        who(c, "client"),
        who(c, "server"),
        table.short_ids(",".join(sorted(units))) or "-",
        render.duration(c["age_seconds"]),
    )


def _short(c: Connection) -> tuple[str, ...]:
    sent = (f"{side}_sent_bytes" for side in ("client", "server"))
    state = _state(c)
    carried = (table.size(c[key]) if key in c else "?" for key in sent)
    return (*carried, table.size(both(c, "unread_bytes")), state)


def _wide(c: Connection) -> tuple[str, ...]:
    units = sorted({c.get("client_unit", ""), c.get("server_unit", "")} - {""})
    carried = (
        str(c.get(f"{side}_sent_{what}", "?"))
        for side in ("client", "server")
        for what in ("bytes", "messages")
    )
    return (
        *_head(c)[:4],
        ",".join(units) or "-",
        _head(c)[5],
        c.get("accepted_at", "-"),
        *carried,
        str(both(c, "tcp_bytes")),
        str(both(c, "unread_bytes")),
        _state(c),
    )


def _state(c: dict[str, Any]) -> str:
    """Joined means that it was established before it was put on the sockhash."""
    if c["leaving"]:
        return f"leaving ({c['reason']})"
    return "joined" if c.get("joined") else "accelerated"
