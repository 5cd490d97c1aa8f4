"""Run by test_missing_names.py: uses dbus-next without names that newer Pythons lack.

`missing_names.py MODULE NAME...`: removes the names, as `asyncio.iscoroutinefunction`, before
anything is imported that could keep them. Then it imports the module, and has a message marshalled
and unmarshalled. sockredird's object is called over a socket, too.
"""

from __future__ import annotations

import asyncio
import importlib
import io
import os
import sys
import tempfile
from pathlib import Path


def remove(path: str) -> None:
    module, _, name = path.rpartition(".")
    vars(importlib.import_module(module)).pop(name, None)


def round_trip() -> None:
    from dbus_next import Message, Variant
    from dbus_next._private.unmarshaller import Unmarshaller

    body = [{"number": Variant("t", 2**63), "text": Variant("s", "a")}, ["b", "c"]]
    sent = Message("a.b", "/c", "d.e", "F", signature="a{sv}as", body=body, serial=7)
    received = Unmarshaller(io.BytesIO(sent._marshall(False))).unmarshall()
    assert received.body == body, received.body


async def call_object(path: Path) -> None:
    """Calls a method, and reads a property: dbus-next asks of both whether they are coroutines."""
    from sockredird.bus.wire import METHOD_RETURN
    from unit.bus.fakebus import FakeBus

    manager, properties = "org.sockredir.Manager1", "org.freedesktop.DBus.Properties"
    bus = FakeBus(path, uid=0)
    await bus.start()
    try:
        stats = await bus.ask(manager, "Stats")
        state = await bus.ask(properties, "Get", manager, "State")
    finally:
        await bus.stop()
    assert (stats.kind, stats.signature) == (METHOD_RETURN, "a{sv}"), stats
    assert (state.kind, state.signature) == (METHOD_RETURN, "v"), state


def main(module: str, *missing: str) -> None:
    for name in missing:
        remove(name)
    importlib.import_module(module)
    round_trip()
    if module.startswith("sockredird."):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "bus"
            os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={path}"
            asyncio.run(call_object(path))


main(*sys.argv[1:])
