"""What loader/records.py says beside the C headers is the same, and records read back."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import asdict, fields

from hypothesis import given
from hypothesis import strategies as st

from sockredird.loader.header import causes, enumerators, record
from sockredird.loader.records import (
    ADDRESSES,
    CAUSES,
    COUNTERS,
    DECLINED,
    EVENT_KINDS,
    LEARNED_FOR_GOOD,
    MODES,
    PAUSED,
    REQUEST_JOIN,
    REQUEST_LEARNED,
    REQUEST_ULP,
    REQUEST_WALK,
    RETIRED,
    SIDES,
    UNPROFITABLE,
    Event,
    Flow,
    Settings,
    flow_key,
    hash_of,
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ports = st.integers(0, 65535)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
_U64 = ("memory_bytes", "trial", "seed")


def names(enum: str, prefix: str = "") -> tuple[str, ...]:
    return tuple(name.removeprefix(prefix).lower() for name in enumerators(enum))


def test_enumerations() -> None:
    assert names("addresses", "ADDRESSES_") == ADDRESSES
    assert names("side") == SIDES
    words = {"by_tcp": "tcp", "redirect": "redirected", "native": "leaving"}
    assert tuple(words[name] for name in names("mode")) == MODES
    assert names("event_kind", "EVENT_") == ("active", *EVENT_KINDS[1:])
    requests = {
        "walk": REQUEST_WALK,
        "learned": REQUEST_LEARNED,
        "ulp": REQUEST_ULP,
        "join": REQUEST_JOIN,
    }
    assert requests == {name: at for at, name in enumerate(names("request", "REQUEST_"))}


def test_each_cause_happens_to_something() -> None:
    of_connections, of_listeners = (
        {*DECLINED, *RETIRED, *PAUSED},
        {*LEARNED_FOR_GOOD, *UNPROFITABLE},
    )
    assert of_connections | of_listeners == causes().keys()
    assert not {*LEARNED_FOR_GOOD} & {*UNPROFITABLE}
    # what a listener is learned for is seen in one of its connections, or in many
    assert {*LEARNED_FOR_GOOD} <= {*RETIRED}
    assert len(set(COUNTERS)) == len(COUNTERS)


def test_settings_are_those_of_the_c() -> None:
    assert {field.name for field in fields(Settings)} == record("settings").offsets.keys()


@given(
    st.fixed_dictionaries(
        {field.name: u64 if field.name in _U64 else u32 for field in fields(Settings)}
    )
)
def test_settings_round_trip(values: dict[str, int]) -> None:
    raw = Settings(**values).pack()
    assert asdict(Settings.unpack(raw)) == values
    for name, at in record("settings").offsets.items():
        size = 8 if name in _U64 else 4
        assert raw[at : at + size] == struct.pack("=Q" if size == 8 else "=I", values[name])


def packed(address: Address) -> bytes:
    if isinstance(address, ipaddress.IPv4Address):
        return bytes(10) + b"\xff\xff" + address.packed
    return address.packed


def flow_bytes(client: Address, server: Address, netns: int, ports: tuple[int, int]) -> bytes:
    return struct.pack("=16s16sQHHI", packed(client), packed(server), netns, *ports, 0)


def endpoint(text: str) -> tuple[Address, int]:
    """What a reader of 'ADDRESS:PORT' or '[ADDRESS]:PORT' makes of it."""
    host, _, port = text.rpartition(":")
    return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")), int(port)


def unmapped(address: Address) -> Address:
    return getattr(address, "ipv4_mapped", None) or address


@given(addresses, addresses, u64, ports, ports)
def test_flows_read_back(
    client: Address, server: Address, netns: int, client_port: int, server_port: int
) -> None:
    raw = flow_bytes(client, server, netns, (client_port, server_port))
    assert flow_key((packed(client), client_port), (packed(server), server_port), netns) == raw
    flow = Flow.unpack(raw)
    assert endpoint(flow.client) == (unmapped(client), client_port)
    assert endpoint(flow.server) == (unmapped(server), server_port)
    assert flow.netns == netns
    assert flow.client.startswith("[") == (unmapped(client).version == 6)


@given(u64, st.integers(0, len(EVENT_KINDS) - 1), st.sampled_from(CAUSES[1:]), addresses, ports)
def test_events_read_back(time: int, kind: int, cause: str, address: Address, port: int) -> None:
    flow = flow_bytes(address, address, 1, (port, port))
    raw = record("event").pack(
        time=time,
        kind=kind,
        reason=CAUSES.index(cause),
        totals=struct.pack("=6Q", 1, 2, 3, 4, 5, 6),
        owner=struct.pack("=I16sI16s", 7, b"client", 8, b"a-name-of-15-by"),
        cpu=9,
        lost=10,
        flow=flow,
    )
    event = Event.unpack(raw)
    assert (event.time, event.kind) == (time, EVENT_KINDS[kind])
    assert event.flow == Flow.unpack(flow)
    caused = event.kind in ("declined", "retired", "learned")
    assert event.reason == (cause if caused else "")
    assert tuple(asdict(event.client).values()) == (7, "client", 1, 2, 3)
    assert tuple(asdict(event.server).values()) == (8, "a-name-of-15-by", 4, 5, 6)
    assert (event.cpu, event.lost) == (9, 10)


def test_connections_are_spread_by_the_seed() -> None:
    """maps.h: hash_of() of the same chunks; that it agrees shows in tests/bus/observe."""
    flow = flow_key((bytes(16), 1), (bytes(16), 2), 3)
    assert hash_of(flow, 1) != hash_of(flow, 2)
    assert 0 <= hash_of(flow, 2**64 - 1) < 2**32
