"""Accelerated connections as `list` and Connections() show them, read from the kernel each time.

However many there are, only those to be shown are held in memory. docs/json.md names the keys.
"""

from __future__ import annotations

import heapq
import json
import os
import select
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sockredird.datapath.generation import Generation
from sockredird.errors import Busy, InvalidConfig
from sockredird.kernel.cgroup import Names
from sockredird.loader.records import CONNECTION, FLOW, MODES, PLACE, SIDES, Flow, reason_name, text
from sockredird.observe import owners

Fields = tuple[Any, ...]

# CONNECTION's fields: age, two views of 14 fields, known, leaving, pair, flow, server
_VIEW = {"client": 1, "server": 15}
_BYTES, _MESSAGES, _BYTE_RATE, _MESSAGE_RATE = 0, 1, 3, 4
_INODE, _CGROUP, _UNREAD = 5, 6, 8
_KNOWN, _LEAVING, _PAIR, _FLOW, _SERVER = 29, 30, 31, 32, 33
# The kernel visits a bucket again when its output did not fit in one read(); buckets are short.
_REPEATED = 64
_LINES = 64  # written at a time
STALL_S = 2

_SORTS: dict[str, Callable[[Fields], int]] = {
    "bytes": lambda f: f[1 + _BYTES] + f[15 + _BYTES],
    "messages": lambda f: f[1 + _MESSAGES] + f[15 + _MESSAGES],
    "rate": lambda f: f[1 + _BYTE_RATE] + f[15 + _BYTE_RATE],
    "message_rate": lambda f: f[1 + _MESSAGE_RATE] + f[15 + _MESSAGE_RATE],
    "unread": lambda f: f[1 + _UNREAD] + f[15 + _UNREAD],
    "age": lambda f: f[0],
}
SORTS = tuple(_SORTS)


@dataclass(frozen=True)
class Query:
    """Which connections, and in which order. Raises InvalidConfig for what makes no sense."""

    sort: str = "bytes"
    port: int = 0  # either end's; 0: any
    pid: int = 0  # has either end open; 0: any
    unit: str = ""  # either end's systemd unit, or cgroup; empty: any

    def __post_init__(self) -> None:
        if self.sort not in SORTS:
            raise InvalidConfig(f"cannot sort by {self.sort!r}: choose from {', '.join(SORTS)}")
        for name in ("port", "pid"):
            if not isinstance(getattr(self, name), int):
                raise InvalidConfig(f"{name} must be a number")

    @classmethod
    def of(cls, keys: dict[str, Any]) -> Query:
        unknown = keys.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise InvalidConfig(f"unknown keys {', '.join(sorted(unknown))}")
        return cls(**keys)


def _matcher(query: Query, names: Names, generations: list[Generation]) -> Callable[[Fields], bool]:
    # sockets that several processes have open name only one of them
    inodes = owners.sockets_of(generations[0], query.pid) if query.pid and generations else set()
    port = query.port.to_bytes(2, "little") if query.port else b""

    def in_unit(number: int) -> bool:
        path = names.path(number)
        return query.unit in (names.unit(number), path) or path.startswith(
            query.unit.rstrip("/") + "/"
        )

    def matches(fields: Fields) -> bool:
        flow = fields[_FLOW]
        if port and port not in (flow[40:42], flow[42:44], fields[_SERVER][24:26]):
            return False
        if query.pid and not inodes & {fields[at + _INODE] for at in _VIEW.values()}:
            return False
        return not query.unit or any(in_unit(fields[at + _CGROUP]) for at in _VIEW.values())

    return matches


def _read(generations: list[Generation]) -> Iterator[Fields]:
    for generation in generations:
        recent: deque[bytes] = deque(maxlen=_REPEATED)
        for chunk in generation.connections():
            for fields in CONNECTION.iter_unpack(chunk):
                if fields[_PAIR] not in recent:
                    yield fields
                recent.append(fields[_PAIR])


def _as_server_sees(fields: Fields) -> bytes:
    """struct flow; NAT and another network namespace make it differ from the client's."""
    flow: bytes = fields[_FLOW]
    ip, netns, port = PLACE.unpack(fields[_SERVER])
    if not netns:
        return flow
    client_ip, _, _, client_port, _ = FLOW.unpack(flow)
    return FLOW.pack(client_ip, ip, netns, client_port, port)


def describe(fields: Fields, names: Names) -> dict[str, Any]:
    flow = Flow.unpack(fields[_FLOW])
    seen = Flow.unpack(_as_server_sees(fields))
    result: dict[str, Any] = {
        "client": flow.client,
        "server": flow.server,
        "netns": flow.netns,
        "age_seconds": fields[0] / 1e9,
        "leaving": bool(fields[_LEAVING]),
        "reason": "",
    }
    if seen.server != flow.server:
        result["accepted_at"] = seen.server
    if seen.netns != flow.netns:
        result["server_netns"] = seen.netns
    for number, side in enumerate(SIDES):
        if not fields[_KNOWN] >> number & 1:
            continue  # it has closed
        at = _VIEW[side]
        carried, messages, tcp, byte_rate, message_rate, inode, cgroup = fields[at : at + 7]
        uid, unread, mode, reason, owners, pid, comm = fields[at + 7 : at + 14]
        result |= {
            f"{side}_pid": pid,
            f"{side}_comm": text(comm),
            f"{side}_processes": owners,
            f"{side}_uid": uid,
            f"{side}_inode": inode,
            f"{side}_cgroup": names.path(cgroup),
            f"{side}_unit": names.unit(cgroup),
            f"{side}_mode": MODES[mode],
            f"{side}_sent_bytes": carried,
            f"{side}_sent_messages": messages,
            f"{side}_tcp_bytes": tcp,
            f"{side}_bytes_per_second": byte_rate,
            f"{side}_messages_per_second": message_rate,
            f"{side}_unread_bytes": unread,
        }
        if reason:
            result["reason"] = reason_name(reason)
    if result["leaving"] and not result["reason"]:
        result["reason"] = "disable"
    return result


def busiest(generations: list[Generation], limit: int, query: Query) -> list[dict[str, Any]]:
    """The first `limit` connections in the order of the query, largest first."""
    names = Names()
    found = filter(_matcher(query, names, generations), _read(generations))
    chosen = heapq.nlargest(limit, found, key=_SORTS[query.sort])
    return [describe(fields, names) for fields in chosen]


def write(generations: list[Generation], query: Query, fd: int) -> None:
    """All connections to a pipe, a line of JSON for each, in no order. OSError if it is closed.

    Raises Busy if nobody reads: everything else the daemon has to do waits meanwhile.
    """
    os.set_blocking(fd, False)
    writable = select.poll()
    writable.register(fd, select.POLLOUT)
    names = Names()
    found = filter(_matcher(query, names, generations), _read(generations))
    while chunk := "".join(
        json.dumps(describe(fields, names)) + "\n" for fields in islice(found, _LINES)
    ):
        data = memoryview(chunk.encode())
        while data:
            if not writable.poll(STALL_S * 1000):
                raise Busy(f"a reader of the connections has not read for {STALL_S} s")
            data = data[os.write(fd, data) :]


def with_flows(generations: list[Generation], flows: set[bytes]) -> dict[bytes, dict[str, Any]]:
    """Those of some connections that are accelerated, by struct flow as either end sees it."""
    names = Names()
    found = {}
    for fields in _read(generations):
        for flow in flows & {fields[_FLOW], _as_server_sees(fields)}:
            found[flow] = describe(fields, names)
    return found
