"""A stand-in for systemd on a private bus: units, with real cgroups behind them, start and stop.

Only what sockredird asks of org.freedesktop.systemd1(5), in the words that systemd uses: a unit's
object is there once it is loaded, whether there is such a unit or not, its ControlGroup is empty
unless it runs, and what is signalled is ActiveState, to those who called Subscribe().
"""

# No `from __future__ import annotations`: dbus-next reads D-Bus signatures from annotations.

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, no_type_check

from dbus_next import DBusError, Message, PropertyAccess
from dbus_next.aio import MessageBus
from dbus_next.service import ServiceInterface, dbus_property, method

from sockredird.kernel.cgroup import mount_point
from support import cgroups

NAME = "org.freedesktop.systemd1"
TIMEOUT_S = 20


class _Unit(ServiceInterface):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        super().__init__(f"{NAME}.Unit")
        self.unit = name
        self.load = "not-found"
        self.state = "inactive"
        self.sub = "dead"

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def Id(self) -> "s":  # noqa: F821
        return self.unit

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def LoadState(self) -> "s":  # noqa: F821
        return self.load

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def SubState(self) -> "s":  # noqa: F821
        return self.sub

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def ActiveState(self) -> "s":  # noqa: F821
        return self.state


class _Service(ServiceInterface):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(f"{NAME}.Service")
        self.cgroup = ""
        self.slice = "system.slice"

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def Slice(self) -> "s":  # noqa: F821
        return self.slice

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def ControlGroup(self) -> "s":  # noqa: F821
        return self.cgroup


class _Manager(ServiceInterface):  # type: ignore[misc]
    def __init__(self, load: Callable[[str], str], units: Callable[[], list["_Unit"]]) -> None:
        super().__init__(f"{NAME}.Manager")
        self._load = load
        self._units = units
        self._caller = ""
        self.subscribers: set[str] = set()

    def note_caller(self, message: Message) -> None:
        """Called before the method, to which dbus-next does not pass the caller."""
        self._caller = message.sender

    @method()
    @no_type_check
    def Subscribe(self):
        if self._caller in self.subscribers:
            raise DBusError(f"{NAME}.AlreadySubscribed", "Client is already subscribed.")
        self.subscribers.add(self._caller)

    @method()
    @no_type_check
    def ListUnits(self) -> "a(ssssssouso)":  # noqa: F821
        return [
            [unit.unit, "", unit.load, unit.state, unit.sub, "", "/", 0, "", "/"]
            for unit in self._units()
            if unit.load == "loaded"
        ]

    @method()
    @no_type_check
    def LoadUnit(self, name: "s") -> "o":  # noqa: F821
        return self._load(name)


class Systemd:
    """Runs in a thread of its own until close()."""

    def __init__(self, address: str, root: Path) -> None:
        """Cgroups of units are made in `root`, e.g. <root>/a.service."""
        self._root = root
        self._units: dict[str, tuple[_Unit, _Service]] = {}
        self._aliases: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._manager = _Manager(
            self._load, lambda: [unit for unit, _service in self._units.values()]
        )
        self._bus: MessageBus
        self._do(self._connect(address))

    def _do(self, job: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(job, self._loop).result(TIMEOUT_S)

    async def _connect(self, address: str) -> None:
        self._bus = await MessageBus(address).connect()
        self._bus.add_message_handler(self._manager.note_caller)
        self._bus.export("/org/freedesktop/systemd1", self._manager)
        # last: who waits for the name calls at once, and its calls are answered in this thread
        await self._bus.request_name(NAME)

    def _load(self, name: str) -> str:
        name = self._aliases.get(name, name)
        # bus_label_escape(): what is neither letter nor digit as _xx
        label = "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in name)
        path = f"/org/freedesktop/systemd1/unit/{label}"
        if name not in self._units:
            self._units[name] = (_Unit(name), _Service())
            for interface in self._units[name]:
                self._bus.export(path, interface)
        return path

    async def _set(self, name: str, state: str, cgroup: str) -> None:
        self._load(name)
        unit, service = self._units[name]
        service.cgroup = cgroup
        unit.state = state
        unit.load = "loaded"
        unit.sub = "running" if cgroup else {"active": "exited"}.get(state, "dead")
        if self._manager.subscribers:
            unit.emit_properties_changed({"ActiveState": state})

    def start(self, name: str) -> Path:
        """The unit's cgroup, a new one each time."""
        path = self._root / name
        path.mkdir()
        self.reveal(name, path)
        return path

    def reveal(self, name: str, path: Path) -> None:
        """As start(), in a cgroup that the test has made."""
        self._do(self._set(name, "active", f"/{path.relative_to(mount_point())}"))

    def conceal(self, name: str) -> None:
        self._do(self._set(name, "inactive", ""))

    def exit(self, name: str) -> None:
        """It stays active, as a service of Type=oneshot with RemainAfterExit= does."""
        self._do(self._set(name, "active", ""))

    def install(self, name: str, alias: str = "", slice_: str = "system.slice") -> None:
        """Not started; `alias` is another name for it."""
        self.conceal(name)
        self._units[name][1].slice = slice_
        if alias:
            self._do(self._alias(name, alias))

    async def _alias(self, name: str, alias: str) -> None:
        self._aliases[alias] = name

    def stop(self, name: str) -> None:
        """Kills what runs in it."""
        cgroups.remove(self._root / name)
        self.conceal(name)

    def close(self) -> None:
        """Stops all units and leaves the bus, if that has not been done."""
        if self._loop.is_closed():
            return
        for name, (_, service) in list(self._units.items()):
            if service.cgroup:
                self.stop(name)
        self._loop.call_soon_threadsafe(self._bus.disconnect)
        self._do(self._bus.wait_for_disconnect())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        # dbus-next leaves them to the garbage collector, which pytest hears of
        self._bus._stream.close()
        self._bus._sock.close()
        self._loop.close()
