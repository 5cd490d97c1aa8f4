"""Whatever arrives, or lies in a file: no traceback, no leak, and nobody else is kept waiting."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message, MessageType
from hypothesis import strategies as st

from sockredird import config
from sockredird.bus import events, manager1, wire
from sockredird.config import Config, Scope
from sockredird.control.state import Intent
from sockredird.control.totals import Totals
from sockredird.datapath.learned import Learned
from sockredird.errors import InvalidConfig, printable
from sockredird.kernel import netlink
from sockredird.loader.header import record
from sockredird.loader.records import CAUSES, COUNTERS, EVENT_KINDS, Event
from support.daemon import raw
from support.daemon.process import toml
from support.fuzz import for_a_while

from .bus.fakebus import FakeBus

# -- messages --------------------------------------------------------------------------------

_MEMBERS = [
    *("Enable", "EnableWith", "DisableWith", "Stats", "Check", "Explain", "Connections"),
    *("WriteConnections", "ConnectionsWith", "Forget", "Subscribe", "Get", "GetAll", "Introspect"),
    *("Bench", "BenchWith"),
    *(
        "Set",
        "Ping",
        "GetMachineId",
        "NameOwnerChanged",
        "PropertiesChanged",
        "nonsense",
        "\x1b[1m",
    ),
]
_INTERFACES = [
    *("org.sockredir.Manager1", "org.freedesktop.DBus.Properties", "org.freedesktop.DBus"),
    *("org.freedesktop.DBus.Peer", "org.freedesktop.DBus.Introspectable", "a", ""),
]
_SIGNATURES = ["", "s", "ss", "a{sv}", "ha{sv}", "ua{sv}", "u", "q", "sss", "av", "a(", "v", "ssv"]
_FIELDS = {
    1: st.sampled_from(["/org/sockredir", "/", "/a/b", "", "no path"]),
    2: st.sampled_from(_INTERFACES),
    3: st.sampled_from(_MEMBERS),
    4: st.sampled_from(["a.b", "", "org.freedesktop.DBus.Error.Failed"]),
    5: st.integers(0, 12),
    6: st.sampled_from(["org.sockredir", ""]),
    7: st.sampled_from([":1.3", "org.freedesktop.DBus", "", "\n"]),
    8: st.sampled_from(_SIGNATURES) | st.text("ybnqiuxtdsogavh(){}", max_size=60),
    9: st.integers(0, 3),
}
_STRINGS = st.sampled_from([b"\5\0\0\0force\0\1b\0\0\0\1\0\0\0", b"\1\0\0\0a\0\0\0", bytes(8)])
_BODIES = st.binary(max_size=60) | st.lists(_STRINGS | st.binary(max_size=9)).map(b"".join)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Framed as it should be; what is in it is anything."""
    codes = draw(st.sets(st.sampled_from(list(_FIELDS)), min_size=1))
    likely = {1, 2, 3, 7} if draw(st.booleans()) else set()
    fields = {code: draw(_FIELDS[code]) for code in sorted(codes | likely)}
    kind = draw(st.sampled_from([1, 1, 1, 2, 3, 4, 0, 5, 255]))
    flags, serial = draw(st.sampled_from([0, 1, 4, 255])), draw(st.integers(0, 40))
    endian = draw(st.sampled_from("<<<>"))
    body = draw(_BODIES)
    if draw(st.integers(0, 20)) == 0:
        body = bytes(wire.BODY_LIMIT + 1)
    message = bytearray(raw.build(kind, serial, fields, body, flags=flags, endian=endian))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(1, len(message) - 1))
        if at not in (3, 4, 5, 6, 7, 12, 13, 14, 15):  # what frames it
            message[at] = draw(st.integers(0, 255))
    return bytes(message)


@pytest.mark.parametrize("uid", [0, 65534], ids=["root", "nobody"])
def test_messages(
    uid: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After each, others are answered, nothing is under way, and no descriptor stays open."""
    path = tmp_path / "bus"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
    loop = asyncio.new_event_loop()
    failures: list[Any] = []

    def note(_loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if type(error).__name__ != "DBusError":  # dbus-next raises again what it has answered
            failures.append(context)

    loop.set_exception_handler(note)
    bus = FakeBus(path, uid)
    loop.run_until_complete(bus.start())
    loop.run_until_complete(bus.ping())
    held = len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    async def exchange(stream: list[bytes]) -> None:
        await bus.send(b"".join(stream))
        answer = await bus.ping()
        assert answer.kind == wire.METHOD_RETURN
        while bus.bus._tasks or len(bus.bus._calls):
            await asyncio.sleep(0.001)

    def holds(stream: list[bytes]) -> None:
        caplog.clear()
        loop.run_until_complete(asyncio.wait_for(exchange(stream), 4))
        assert not failures
        assert not [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR]
        assert len(os.listdir("/proc/self/fd")) == held  # noqa: PTH208

    try:
        assert for_a_while(st.lists(messages(), min_size=1, max_size=8), holds) >= 100
    finally:
        loop.run_until_complete(bus.stop())
        loop.close()


def test_streams() -> None:
    """Bytes that nothing has framed: given up, or cut, and never more kept than the limits."""

    def holds(pieces: list[bytes]) -> None:
        framer = wire.Framer()
        try:
            for piece in pieces:
                for frame in framer.feed(piece):
                    assert frame.end - frame.start >= 16
                assert len(framer._buffer) < wire.BODY_LIMIT + wire.FIELDS_LIMIT + 24
        except wire.Malformed:
            pass

    head = st.builds(
        lambda *values: struct.pack("<cBBBIII", b"l", *values[:2], 1, *values[2:]),
        *[st.integers(0, 255)] * 2,
        *[st.integers(0, 2**32 - 1) | st.integers(0, 100)] * 3,
    )
    for_a_while(st.lists(head | st.binary(max_size=200)), holds)


# -- files -----------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
_SECTIONS = {name: list(model.__annotations__) for name, model in config._TABLES.items()}
_VALUES = _JSON | st.sampled_from(["/", "loopback", "unix:/x", "127.0.0.1:9", "a.service", 1, 0.5])


def _keys(*names: str) -> st.SearchStrategy[str]:
    return st.sampled_from(names) | st.text(max_size=8)


def test_configuration(tmp_path: Path) -> None:
    """A configuration, or an error of one line."""
    path = tmp_path / "sockredird.toml"

    def holds(content: bytes) -> None:
        path.write_bytes(content)
        try:
            assert isinstance(config.load(path), Config)
        except InvalidConfig as error:
            assert printable(str(error))

    tables = st.fixed_dictionaries(
        {},
        optional={
            name: st.dictionaries(_keys(*keys), _VALUES, max_size=3)
            for name, keys in _SECTIONS.items()
        },
    )
    written = tables.map(lambda found: toml(found).encode(errors="replace"))
    for_a_while(written | st.binary(max_size=100) | st.text(max_size=100).map(_encoded), holds)


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def test_state_files(tmp_path: Path) -> None:
    """Read without an error; what comes of them, the bus can carry."""
    paths = {name: tmp_path / f"{name}.json" for name in ("enabled", "counters", "learned")}

    def holds(contents: dict[str, Any]) -> None:
        for name, content in contents.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            paths[name].write_bytes(data)
        intent, totals, learned = (
            Intent(paths["enabled"]),
            Totals(paths["counters"]),
            Learned(paths["learned"]),
        )
        config.override_scope(Scope(), intent.usable(Scope()))
        totals.load()
        assert all(0 <= value < 1 << 64 for value in totals.stats([]).values())
        learned.load()
        shown = [manager1.variants(entry) for entry in learned.shown()]
        _carried("aa{sv}", [shown])

    entry = st.fixed_dictionaries(
        {
            "netns": st.integers() | _JSON,
            "port": st.integers(0, 70000) | _JSON,
            "why": st.sampled_from(["rcvlowat", "waitall", "x"]) | _JSON,
            "since": st.integers() | _JSON,
            "pid": st.integers() | _JSON,
            "comm": st.text(max_size=20) | _JSON,
            "cgroup": st.text(max_size=20) | _JSON,
        }
    )
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kept = st.fixed_dictionaries(
        {"boot": st.just(boot) | _JSON, "host": _JSON, "lessons": st.lists(entry) | _JSON}
    )
    for_a_while(
        st.fixed_dictionaries(
            {
                "enabled": st.binary()
                | st.fixed_dictionaries(
                    {
                        "enabled": st.just(True) | _JSON,
                        "scope": st.dictionaries(_keys(*Scope.__annotations__), _VALUES) | _JSON,
                    }
                ),
                "counters": st.binary()
                | st.dictionaries(_keys("generation", *COUNTERS), st.integers() | _JSON),
                "learned": st.binary() | kept | _JSON,
            }
        ),
        holds,
    )


def _carried(signature: str, body: list[Any]) -> None:
    """Raises what dbus-next does for a reply that it cannot send."""
    message = Message(
        message_type=MessageType.METHOD_RETURN,
        reply_serial=1,
        serial=1,
        destination=":1.1",
        signature=signature,
        body=body,
    )
    message._marshall()


# -- the kernel ------------------------------------------------------------------------------


def test_records_and_answers_of_the_kernel() -> None:
    """A record with anything in it reaches subscribers; reading attributes always ends."""
    size = record("event").size

    def holds(data: bytes) -> None:
        netlink.attributes(data)
        with suppress(OSError):
            netlink._header(data, "test")
        raw_event = bytearray(data[:size].ljust(size, b"\1"))
        # these two are the datapath's own, and index tables
        for name, names in (("kind", EVENT_KINDS), ("reason", CAUSES)):
            at = record("event").offsets[name]
            number = raw_event[at] % len(names)
            raw_event[at : at + 4] = number.to_bytes(4, sys.byteorder)
        _carried("a{sv}", [events._body(Event.unpack(bytes(raw_event)))])

    for_a_while(st.binary(max_size=size + 40), holds)
