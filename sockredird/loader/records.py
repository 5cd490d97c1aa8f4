"""What the datapath's maps hold, as Python sees it: causes, counters, settings, flows and events.

Records and enumerations are read from the C (header.py).
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass
from ipaddress import IPv6Address
from typing import Any

from sockredird.loader.header import causes, enumerators, record

CAUSES = ("", *causes())  # by enum cause
PLAIN_COUNTERS = tuple(
    name for name in record("counters").offsets if name not in ("declined", "retired", "paused")
)
DECLINED = tuple(name for name, flags in causes().items() if "DECLINES" in flags)
RETIRED = tuple(name for name, flags in causes().items() if "RETIRES" in flags)
PAUSED = tuple(name for name, flags in causes().items() if "PAUSES" in flags)
# What Stats() counts.
COUNTERS = (
    *PLAIN_COUNTERS,
    *(f"declined_{name}" for name in DECLINED),
    *(f"retired_{name}" for name in RETIRED),
    *(f"paused_{name}" for name in PAUSED),
)
# Causes for which a listener is left alone: for good, or until connections to it are joined.
LEARNED_FOR_GOOD = tuple(name for name, flags in causes().items() if "LISTENER" in flags)
UNPROFITABLE = tuple(name for name, flags in causes().items() if "UNPROFITABLE" in flags)

FLOW = record("flow")
LISTENER = record("listener")
ADDRESSES = ("loopback", "host", "any")  # enum addresses
MODES = ("tcp", "redirected", "leaving")  # enum mode
SIDES = ("client", "server")  # enum side
EVENT_KINDS = (
    *("active_established", "accelerated", "declined", "retired", "closed", "learned"),
    "joined",
)
REQUEST_WALK, REQUEST_LEARNED, REQUEST_ULP, REQUEST_JOIN = range(len(enumerators("request")))
EXCLUDED = 1 << 31  # pair/cgroup.h: the path ends here
_V4_MAPPED = bytes(10) + b"\xff\xff"


def hash_of(flow: bytes, seed: int) -> int:
    """maps.h: where an array has what is kept for a connection, modulo the array's size."""
    mixed = seed
    for chunk in struct.unpack("=6Q", flow):
        mixed = (mixed ^ mixed >> 32 ^ chunk) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    return mixed >> 32


@dataclass
class Settings:
    """struct settings: what the daemon tells the running programs."""

    stopped: int = 0
    stopped_in: int = 0
    epoch: int = 0
    window_bytes: int = 0
    trace: int = 0
    listing: int = 0
    addresses: int = 0  # index in ADDRESSES
    excludes: int = 0
    learn: int = 0
    ktls: int = 0
    blocking: int = 0
    recent: int = 0  # jiffies
    revalidate: int = 0  # jiffies
    grants: int = 0
    answers_fionread: int = 0
    begin_late: int = 0
    memory_bytes: int = 0
    make_room: int = 0  # pairs
    trial: int = 0
    seed: int = 0

    def pack(self) -> bytes:
        return record("settings").pack(**asdict(self))

    @classmethod
    def unpack(cls, raw: bytes) -> Settings:
        return cls(**record("settings").unpack(raw)._asdict())


def ip_bytes(parts: tuple[int, ...]) -> bytes:
    """The 16 bytes of an address that a record has as four numbers."""
    return struct.pack("=4I", *parts)


def flow_key(client: tuple[bytes, int], server: tuple[bytes, int], netns: int) -> bytes:
    """A struct flow; ends are 16 bytes of address, IPv4 v4-mapped, and a port."""
    return FLOW.pack(
        client_ip=struct.unpack("=4I", client[0]),
        server_ip=struct.unpack("=4I", server[0]),
        netns=netns,
        client_port=client[1],
        server_port=server[1],
    )


def listener_key(netns: int, port: int, user: int = 0) -> bytes:
    return LISTENER.pack(netns=netns, port=port, user=user)


@dataclass(frozen=True)
class Flow:
    """A connection's addresses, as the client sees them."""

    client: str
    server: str
    netns: int

    @classmethod
    def of(cls, flow: Any) -> Flow:
        """`flow`: a struct flow as header.Record unpacks it."""
        client = endpoint_text(ip_bytes(flow.client_ip), flow.client_port)
        return cls(client, endpoint_text(ip_bytes(flow.server_ip), flow.server_port), flow.netns)

    @classmethod
    def unpack(cls, raw: bytes) -> Flow:
        return cls.of(FLOW.unpack(raw))


def endpoint_text(ip: bytes, port: int) -> str:
    """ADDRESS:PORT, or [ADDRESS]:PORT."""
    if ip.startswith(_V4_MAPPED):
        return f"{ip[12]}.{ip[13]}.{ip[14]}.{ip[15]}:{port}"
    return f"[{IPv6Address(ip)}]:{port}"


def text(raw: bytes) -> str:
    """A C string."""
    return raw.partition(b"\0")[0].decode(errors="backslashreplace")


@dataclass(frozen=True)
class End:
    """One end of a connection in an event: its program, and what the direction from it carried."""

    pid: int  # 0: not known
    comm: str
    bytes: int
    messages: int
    tcp_bytes: int


@dataclass(frozen=True)
class Event:
    """struct event; `time` is CLOCK_MONOTONIC in ns, `reason` empty where there is none."""

    time: int
    kind: str
    reason: str
    flow: Flow
    client: End
    server: End
    cpu: int
    lost: int

    @classmethod
    def unpack(cls, raw: bytes) -> Event:
        event = record("event").unpack(raw)
        name = EVENT_KINDS[event.kind]
        client, server = (
            End(o.pid, text(o.comm), t.bytes, t.messages, t.tcp_bytes)
            for o, t in zip(event.owner, event.totals, strict=True)
        )
        reason = CAUSES[event.reason] if name in ("declined", "retired", "learned") else ""
        flow = Flow.of(event.flow)
        return cls(event.time, name, reason, flow, client, server, event.cpu, event.lost)
