"""Accelerated connections as `list` and Connections() show them, read from the kernel each time.

Only the connections that are shown are held in memory. docs/json.md describes the keys.
"""

from __future__ import annotations

import heapq
import json
import os
import select
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sockredird.config import unit_name
from sockredird.datapath.generation import Generation
from sockredird.errors import Busy, InvalidConfig
from sockredird.kernel.cgroup import Names
from sockredird.loader.header import record
from sockredird.loader.records import CAUSES, FLOW, MODES, SIDES, Flow, text
from sockredird.observe import owners

Connection = Any  # struct connection, as header.Record unpacks it
Listed = tuple[set[bytes], dict[str, Any]]  # struct flow, as either end sees it, and the connection

# If the records of a bucket do not fit into one read(), the kernel writes them again in the next.
# Buckets are short.
_REPEATED = 64
_LINES = 64  # written together
STALL_S = 2


def _sum(field: str) -> Callable[[Connection], int]:
    return lambda c: sum(getattr(view, field) for view in c.view)


_SORTS: dict[str, Callable[[Connection], int]] = {
    "bytes": _sum("bytes"),
    "messages": _sum("messages"),
    "rate": _sum("byte_rate"),
    "message_rate": _sum("message_rate"),
    "unread": _sum("unread"),
    "age": lambda c: int(c.age),
}
SORTS = tuple(_SORTS)


@dataclass(frozen=True)
class Query:
    """Which connections are listed, and in which order. Raises InvalidConfig for invalid values."""

    sort: str = "bytes"
    port: int = 0  # of either end; 0: any
    pid: int = 0  # of a process that has either end open; 0: any
    unit: str = ""  # systemd unit or cgroup of either end; empty: any
    pids: Sequence[int] = ()  # processes; one of them has either end open; empty: any

    def __post_init__(self) -> None:
        if self.sort not in SORTS:
            raise InvalidConfig(f"cannot sort by {self.sort!r}: choose from {', '.join(SORTS)}")
        for name in ("port", "pid"):
            if not isinstance(getattr(self, name), int):
                raise InvalidConfig(f"{name} must be a number")
        if not isinstance(self.unit, str):
            raise InvalidConfig("unit must be the name of a systemd unit, or the path of a cgroup")
        if isinstance(self.pids, str) or not all(isinstance(pid, int) for pid in self.pids):
            raise InvalidConfig("pids must be a list of numbers")

    @classmethod
    def of(cls, keys: dict[str, Any]) -> Query:
        unknown = keys.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise InvalidConfig(
                f"unknown keys {', '.join(sorted(unknown))}: "
                f"there are {', '.join(cls.__dataclass_fields__)}"
            )
        return cls(**keys)


def in_unit(path: str, unit: str) -> bool:
    """Whether a cgroup belongs to a systemd unit, or is the one of this path, or below it."""
    if unit.startswith("/"):
        return f"{path}/".startswith(unit.rstrip("/") + "/")
    return unit_name(unit) in path.split("/")


def _matcher(
    query: Query, names: Names, generations: list[Generation]
) -> Callable[[Connection], bool]:
    # a record names only one of the processes that have a socket open
    pids = {*query.pids, query.pid} - {0}
    inodes = owners.sockets_of(generations[0], pids) if pids and generations else set()

    def matches(c: Connection) -> bool:
        ports = c.flow.client_port, c.flow.server_port, c.server.port
        if query.port and query.port not in ports:
            return False
        if pids and not inodes & {view.inode for view in c.view}:
            return False
        return not query.unit or any(in_unit(names.path(v.cgroup), query.unit) for v in c.view)

    return matches


def _read(generations: list[Generation]) -> Iterator[Connection]:
    for generation in generations:
        recent: deque[Any] = deque(maxlen=_REPEATED)
        for chunk in generation.connections():
            for connection in record("connection").iter_unpack(chunk):
                if connection.pair not in recent:
                    yield connection
                recent.append(connection.pair)


def _as_server_sees(c: Connection) -> Any:
    """struct flow as the server end sees it, which differs behind NAT or in another namespace."""
    if not c.server.netns:
        return c.flow
    return c.flow._replace(server_ip=c.server.ip, netns=c.server.netns, server_port=c.server.port)


def _flows(c: Connection) -> set[bytes]:
    return {FLOW.pack(**seen._asdict()) for seen in (c.flow, _as_server_sees(c))}


def rates(generations: list[Generation]) -> Iterator[tuple[set[bytes], list[tuple[int, int]]]]:
    """Each connection: struct flow as either end sees it, and the rates of its directions.

    A rate is messages and bytes per second that were redirected since the last list that was made
    at least half a second ago.
    """
    for c in _read(generations):
        yield _flows(c), [(view.message_rate, view.byte_rate) for view in c.view]


def describe(c: Connection, names: Names) -> dict[str, Any]:
    flow = Flow.of(c.flow)
    seen = Flow.of(_as_server_sees(c))
    result: dict[str, Any] = {
        "client": flow.client,
        "server": flow.server,
        "netns": flow.netns,
        "age_seconds": c.age / 1e9,
        "leaving": bool(c.leaving),
        "joined": bool(c.joined),
        "reason": "",
    }
    if seen.server != flow.server:
        result["accepted_at"] = seen.server
    if seen.netns != flow.netns:
        result["server_netns"] = seen.netns
    for number, side in enumerate(SIDES):
        if not c.known >> number & 1:
            continue  # it has closed
        view = c.view[number]
        result |= {
            f"{side}_pid": view.owner.pid,
            f"{side}_comm": text(view.owner.comm),
            f"{side}_processes": view.owners,
            f"{side}_uid": view.uid,
            f"{side}_inode": view.inode,
            f"{side}_cgroup": names.path(view.cgroup),
            f"{side}_unit": names.unit(view.cgroup),
            f"{side}_mode": MODES[view.mode],
            f"{side}_sent_bytes": view.bytes,
            f"{side}_sent_messages": view.messages,
            f"{side}_tcp_bytes": view.tcp_bytes,
            f"{side}_bytes_per_second": view.byte_rate,
            f"{side}_messages_per_second": view.message_rate,
            f"{side}_unread_bytes": view.unread,
        }
        if view.reason:
            result["reason"] = CAUSES[view.reason]
    if result["leaving"] and not result["reason"]:
        result["reason"] = "disable"
    return result


def busiest(generations: list[Generation], limit: int, query: Query) -> list[dict[str, Any]]:
    """The first `limit` connections in the order of the query, from the largest value down."""
    names = Names()
    found = filter(_matcher(query, names, generations), _read(generations))
    chosen = heapq.nlargest(limit, found, key=_SORTS[query.sort])
    return [describe(c, names) for c in chosen]


def write(generations: list[Generation], query: Query, fd: int) -> None:
    """Writes all connections to a pipe, a line of JSON for each, in no order.

    Raises OSError if the pipe is closed, and Busy if nobody reads for STALL_S, since the daemon
    does nothing else meanwhile.
    """
    os.set_blocking(fd, False)
    writable = select.poll()
    writable.register(fd, select.POLLOUT)
    names = Names()
    found = filter(_matcher(query, names, generations), _read(generations))
    while chunk := "".join(json.dumps(describe(c, names)) + "\n" for c in islice(found, _LINES)):
        data = memoryview(chunk.encode())
        while data:
            if not writable.poll(STALL_S * 1000):
                raise Busy(f"the pipe was not read for {STALL_S} s: read it during the call")
            data = data[os.write(fd, data) :]


def matching(generations: list[Generation], query: Query) -> Iterator[Listed]:
    """All connections that a query selects, in no order."""
    names = Names()
    for c in filter(_matcher(query, names, generations), _read(generations)):
        yield _flows(c), describe(c, names)


def with_flows(generations: list[Generation], flows: set[bytes]) -> dict[bytes, dict[str, Any]]:
    """The accelerated connections among `flows`, by struct flow as either end sees it."""
    names = Names()
    found = {}
    for c in _read(generations):
        for flow in flows & _flows(c):
            found[flow] = describe(c, names)
    return found
