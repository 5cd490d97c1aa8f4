"""The cgroups of systemd units, and being told when they change: org.freedesktop.systemd1(5).

A unit's cgroup is made when it starts and removed when it has stopped; the next start makes
another. systemd tells on the bus, so nothing here polls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from dbus_next import DBusError, Message, MessageType
from dbus_next.aio import MessageBus

from sockredird.bus import calls
from sockredird.errors import InvalidConfig

log = logging.getLogger(__name__)

SYSTEMD = "org.freedesktop.systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_PATH = "/org/freedesktop/systemd1"


def _state_rule(path: str) -> str:
    return (
        f"type='signal',sender='{SYSTEMD}',interface='{_PROPERTIES}',"
        f"member='PropertiesChanged',path='{path}'"
    )


_OWNER_RULE = calls.departure_rule(SYSTEMD)


class Units:
    """Lives on the event loop."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """`changed` is called when a followed unit may have another cgroup, or none any more."""
        self._changed = changed
        self._bus: MessageBus | None = None
        self._followed: set[str] = set()  # object paths
        self._again: asyncio.Task[None] | None = None

    def use(self, bus: MessageBus) -> None:
        """Asks and listens on this connection from here on."""
        self._bus = bus
        bus.add_message_handler(self._heard)
        if self._followed:
            # what was asked for went with the connection before
            self._followed.clear()
            self._changed()

    def lose(self) -> None:
        """The bus is gone; what is followed is not forgotten."""
        self._bus = None

    async def follow(self, units: Sequence[str]) -> dict[str, str]:
        """Each unit's cgroup as in /proc/PID/cgroup, empty while it has none; and no others' news.

        Raises InvalidConfig if systemd does not answer.
        """
        if not units:
            with suppress(DBusError, TimeoutError, OSError):  # it hears more than it asks for
                await self._listen(set())
            self._followed = set()
            return {}
        try:
            paths = {unit: str(await self._ask("LoadUnit", unit)) for unit in units}
            if self._followed != {*paths.values()}:
                await self._listen({*paths.values()})
            return {unit: await self._cgroup(unit, path) for unit, path in paths.items()}
        except (DBusError, TimeoutError, OSError) as error:
            raise InvalidConfig(
                f"scope.units: systemd does not say where the units are ({error}): "
                "choose by scope.cgroup"
            ) from error

    async def _listen(self, paths: set[str]) -> None:
        bus = self._connected()
        rules = {_state_rule(path) for path in paths}
        before = {_state_rule(path) for path in self._followed}
        if paths and not before:
            await self._subscribe()
            rules.add(_OWNER_RULE)
        if before and not paths:
            before.add(_OWNER_RULE)
        for rule in rules - before:
            await calls.ask_bus(bus, "AddMatch", rule)
        for rule in before - rules - ({_OWNER_RULE} if paths else set()):
            await calls.ask_bus(bus, "RemoveMatch", rule)
        self._followed = paths

    async def _subscribe(self) -> None:
        """Without that systemd signals nothing of units. A second time does no harm."""
        try:
            await self._ask("Subscribe")
        except DBusError as error:
            if error.type != f"{SYSTEMD}.AlreadySubscribed":
                raise

    async def _cgroup(self, unit: str, path: str) -> str:
        kind = unit.rpartition(".")[2].capitalize()
        message = Message(
            destination=SYSTEMD,
            path=path,
            interface=_PROPERTIES,
            member="Get",
            signature="ss",
            body=[f"{SYSTEMD}.{kind}", "ControlGroup"],
        )
        (value,) = await calls.call(self._connected(), message)
        return str(value.value)

    async def _ask(self, member: str, *arguments: str) -> object:
        message = Message(
            destination=SYSTEMD,
            path=_PATH,
            interface=_MANAGER,
            member=member,
            signature="s" * len(arguments),
            body=list(arguments),
        )
        body = await calls.call(self._connected(), message)
        return body[0] if body else None

    def _connected(self) -> MessageBus:
        if self._bus is None:
            raise OSError("the D-Bus system bus is gone")
        return self._bus

    def _heard(self, message: Message) -> None:
        if message.message_type != MessageType.SIGNAL or not self._followed:
            return
        if message.member == "PropertiesChanged" and message.path in self._followed:
            self._changed()
        elif message.member == "NameOwnerChanged" and message.sender == calls.DRIVER:
            name, _old, new = message.body
            if name == SYSTEMD and new:  # it was executed anew, or has started
                self._again = asyncio.ensure_future(self._subscribe_again())

    async def _subscribe_again(self) -> None:
        try:
            await self._subscribe()
        except (DBusError, TimeoutError, OSError) as error:
            log.warning("restarts of units may go unnoticed: %s", error)
        self._changed()
