"""What reaches dbus-next, where the bus would let more through than it does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sockredird.bus import limits
from support.daemon import raw

from .fakebus import FakeBus


def call(member: str, serial: int, flags: int = raw.NO_REPLY) -> bytes:
    interface = "org.sockredir.Manager1"
    fields: dict[int, str | int] = {1: "/org/sockredir", 2: interface, 3: member, 7: ":1.99"}
    return raw.build(raw.CALL, serial, fields, flags=flags)


@pytest.fixture
def with_bus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[FakeBus], Awaitable[None]], int], None]:
    def run(body: Callable[[FakeBus], Awaitable[None]], uid: int = 65534) -> None:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path / 'bus'}")

        async def between() -> None:
            bus = FakeBus(tmp_path / "bus", uid)
            await bus.start()
            try:
                await body(bus)
            finally:
                await bus.stop()

        asyncio.run(between())

    return run


@pytest.mark.parametrize(("serials", "counted"), [(1, 1), (100, limits.CALLS_PER_SENDER)])
def test_calls_under_way(
    with_bus: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    serials: int,
    counted: int,
) -> None:
    """The refusal of one does not make room for the next, be its serial in use already."""

    async def body(bus: FakeBus) -> None:
        done = asyncio.Event()

        async def is_root(_caller: object) -> bool:
            await done.wait()
            return False

        monkeypatch.setattr(bus.bus.authority, "is_root", is_root)  # what Check waits for
        stream = [call("Check", 1 + number % serials) for number in range(100)]
        await bus.send(b"".join(stream))
        await bus.ping()
        assert len(bus.bus._calls) == counted
        done.set()
        await bus.ping()
        assert len(bus.bus._calls) == 0

    with_bus(body)


@pytest.mark.parametrize(("uid", "runs"), [(0, 1), (65534, 0)])
def test_only_who_may_manage_is_unmarshalled(
    with_bus: Callable[..., None], monkeypatch: pytest.MonkeyPatch, uid: int, runs: int
) -> None:
    from sockredird.bus import connection

    unmarshalled: list[object] = []
    real = connection._unmarshalled

    def note(frame: connection.Frame, descriptors: list[int]) -> object:
        message = real(frame, descriptors)
        unmarshalled.extend([message] if message.member == "Enable" else [])
        return message

    monkeypatch.setattr(connection, "_unmarshalled", note)

    async def body(bus: FakeBus) -> None:
        await bus.send(call("Enable", 1, 0))
        while not bus.bus._tasks:
            await asyncio.sleep(0)
        while bus.bus._tasks:
            await bus.ping()
        assert len(unmarshalled) == runs

    with_bus(body, uid)
