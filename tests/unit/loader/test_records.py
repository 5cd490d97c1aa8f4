"""loader/records.py says in Python what bpf/sockredir.h says in C."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockredird.loader import records
from sockredird.loader.records import (
    COUNTERS,
    EVENT_KINDS,
    LESSON_KINDS,
    PASSING_LESSONS,
    Event,
    Flow,
    Settings,
)
from support import cstructs

PAGE = 4096
ports = st.integers(0, 65535)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def test_counters() -> None:
    *names, end = cstructs.enumerators("counter")
    assert end == "COUNTERS"
    assert tuple(name.lower() for name in names) == COUNTERS


def test_event_kinds() -> None:
    assert len(cstructs.enumerators("event_kind")) == len(EVENT_KINDS)


def test_lesson_kinds() -> None:
    names = [name.removeprefix("LESSON_").lower() for name in cstructs.enumerators("lesson_kind")]
    short = names.index("short")
    names[0], names[short] = "", "short connections"
    assert tuple(name.replace("_", " ") for name in names) == LESSON_KINDS
    assert LESSON_KINDS[13:] == PASSING_LESSONS == LESSON_KINDS[names.index("spills") :]


@pytest.mark.parametrize(
    ("record", "packed"),
    [
        ("settings", records.SETTINGS),
        ("member", records.MEMBER),
        ("flow", records.FLOW),
        ("event", records.EVENT),
        ("lesson", records.LESSON),
        ("shortcut", records.SHORTCUT),
    ],
)
def test_record_sizes(record: str, packed: struct.Struct) -> None:
    assert cstructs.struct(record).size == packed.size


def test_the_layout_rules_see_padding() -> None:
    """The oracle of the sizes: a struct whose size is more than the sum of its members."""
    flow = cstructs.struct("flow")
    assert flow.alignment == 8
    assert flow.offsets["client_port"] == 40
    assert flow.size == 48


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("peers", "end", None),
        ("sockets", None, "sock_state"),
        ("handshakes", "pair", "handshake"),
        ("answered", None, "answer"),
        ("unproven", None, "unproven"),
        ("leaving", "pair", "leaving"),
        ("settings", None, "settings"),
        ("counters", None, "counters"),
        ("manifest", None, "manifest"),
        ("learned", "listener", "lesson"),
        ("shortcuts", None, "shortcut"),
        ("balances", "listener", None),
    ],
)
def test_map_sizes(name: str, key: str | None, value: str | None) -> None:
    shape = records.map_shapes(1000, PAGE)[name]
    if key:
        assert shape.key_size == cstructs.struct(key).size
    if value:
        assert shape.value_size == cstructs.struct(value).size


@given(st.builds(Settings, *[u32] * len(cstructs.struct("settings").offsets)))
def test_settings_round_trip(settings: Settings) -> None:
    assert Settings.unpack(settings.pack()) == settings


def test_settings_order() -> None:
    """Each field is where C has it."""
    for field, offset in cstructs.struct("settings").offsets.items():
        raw = Settings(**{field: 0x01020304}).pack()
        assert raw[offset : offset + 4] == struct.pack("=I", 0x01020304)
        assert raw.count(0) == len(raw) - 4


def packed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    if isinstance(address, ipaddress.IPv4Address):
        return bytes(10) + b"\xff\xff" + address.packed
    return address.packed


def flow_bytes(
    client: bytes, server: bytes, netns: int, client_port: int, server_port: int
) -> bytes:
    raw = bytearray(cstructs.struct("flow").size)
    at = cstructs.struct("flow").offsets
    raw[at["client_ip"] : at["client_ip"] + 16] = client
    raw[at["server_ip"] : at["server_ip"] + 16] = server
    struct.pack_into("=Q", raw, at["netns"], netns)
    struct.pack_into("=H", raw, at["client_port"], client_port)
    struct.pack_into("=H", raw, at["server_port"], server_port)
    return bytes(raw)


def endpoint(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """What a reader of 'ADDRESS:PORT' or '[ADDRESS]:PORT' makes of it."""
    host, _, port = text.rpartition(":")
    return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")), int(port)


def unmapped(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return getattr(address, "ipv4_mapped", None) or address


@given(addresses, addresses, u64, ports, ports)
def test_flows_read_back(
    client: ipaddress.IPv4Address | ipaddress.IPv6Address,
    server: ipaddress.IPv4Address | ipaddress.IPv6Address,
    netns: int,
    client_port: int,
    server_port: int,
) -> None:
    flow = Flow.unpack(flow_bytes(packed(client), packed(server), netns, client_port, server_port))
    assert endpoint(flow.client) == (unmapped(client), client_port)
    assert endpoint(flow.server) == (unmapped(server), server_port)
    assert flow.netns == netns
    assert flow.client.startswith("[") == (unmapped(client).version == 6)


@given(
    u64, st.integers(0, len(EVENT_KINDS) - 1), st.integers(0, len(COUNTERS) - 1), addresses, ports
)
def test_events_read_back(
    time: int,
    kind: int,
    reason: int,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    port: int,
) -> None:
    flow = flow_bytes(packed(address), packed(address), 1, port, port)
    if EVENT_KINDS[kind] == "learned":
        reason %= len(LESSON_KINDS)
    at = cstructs.struct("event").offsets
    raw = bytearray(cstructs.struct("event").size)
    struct.pack_into("=Q", raw, at["time"], time)
    struct.pack_into("=I", raw, at["kind"], kind)
    struct.pack_into("=I", raw, at["reason"], reason)
    raw[at["flow"] :] = flow
    event = Event.unpack(bytes(raw))
    assert (event.time, event.kind) == (time, EVENT_KINDS[kind])
    assert event.flow == Flow.unpack(flow)
    if event.kind in ("declined", "retired"):
        assert COUNTERS[reason].endswith(f"_{event.reason}")
        assert event.reason
    elif event.kind == "learned":
        assert event.reason == LESSON_KINDS[reason]
    else:
        assert event.reason == ""
