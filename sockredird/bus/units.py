"""The cgroups of systemd units, the names that users give to units, and notice of changes.

A unit's cgroup is made when it starts and removed when it has stopped; the next start makes
another. systemd announces this on the bus, so nothing here polls: org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import Any

from dbus_next import DBusError, Message, MessageType
from dbus_next.aio import MessageBus

from sockredird.bus import calls
from sockredird.errors import InvalidConfig
from sockredird.kernel import cgroup

log = logging.getLogger(__name__)

SYSTEMD = "org.freedesktop.systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_PATH = "/org/freedesktop/systemd1"
_SUGGESTED = 3
_HAS_CGROUP = re.compile(r"\.(service|scope|socket|mount|swap)$")


def _state_rule(path: str) -> str:
    return (
        f"type='signal',sender='{SYSTEMD}',interface='{_PROPERTIES}',"
        f"member='PropertiesChanged',path='{path}'"
    )


_OWNER_RULE = calls.departure_rule(SYSTEMD)


@contextmanager
def _answering(key: str, instead: str) -> Iterator[None]:
    """Turns systemd's silence, and its errors, into InvalidConfig."""
    try:
        yield
    except (DBusError, TimeoutError, OSError) as error:
        words = str(error) or "no answer"
        raise InvalidConfig(
            f"scope.{key}: systemd does not say where the units are ({words}): "
            f"use scope.{instead} instead"
        ) from error


def _meant(units: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(units[:_SUGGESTED])}?" if units else ""


def _slice_path(name: str) -> str:
    """Where a slice's cgroup is: a-b.slice is in a.slice, systemd.slice(5)."""
    if name == "-.slice":
        return ""
    parts = name.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(parts[: end + 1])}.slice" for end in range(len(parts)))


def populated(path: str) -> bool:
    """Whether a process runs in a cgroup or below, named as in /proc/PID/cgroup."""
    if not path:
        return False
    try:
        events = (cgroup.directory(path) / "cgroup.events").read_text()
    except OSError:
        return False
    return "populated 1" in events.splitlines()


class Units:
    """Lives on the event loop."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """`changed` is called when a followed unit may have another cgroup, or none any more."""
        self._changed = changed
        self._bus: MessageBus | None = None
        self._followed: set[str] = set()  # object paths
        self._again: asyncio.Task[None] | None = None

    def use(self, bus: MessageBus) -> None:
        """Asks and listens on this connection from now on."""
        self._bus = bus
        bus.add_message_handler(self._heard)
        if self._followed:
            # the match rules have gone with the connection before
            self._followed.clear()
            self._changed()

    def lose(self) -> None:
        """The bus is gone; use() of another follows the same units again."""
        self._bus = None

    async def follow(self, units: Sequence[str]) -> dict[str, str]:
        """Follows these units, and no others any more. Returns the cgroup of each.

        It is as in /proc/PID/cgroup, and empty while the unit has none. Raises InvalidConfig if
        systemd does not answer.
        """
        if not units:
            with suppress(DBusError, TimeoutError, OSError):  # then it hears more than it needs
                await self._listen(set())
            self._followed = set()
            return {}
        with _answering("units", "cgroup"):
            paths = {unit: str(await self._ask("LoadUnit", unit)) for unit in units}
            if self._followed != {*paths.values()}:
                await self._listen({*paths.values()})
            return {unit: await self._cgroup(unit, path) for unit, path in paths.items()}

    async def places(self, units: Sequence[str]) -> dict[str, str]:
        """The cgroup that each unit has, or will have when it starts, as in /proc/PID/cgroup.

        Raises InvalidConfig if systemd does not answer.
        """
        with _answering("exclude_units", "exclude_cgroups"):
            return {unit: await self._place(unit) for unit in units}

    async def resolve(
        self, units: Sequence[str], *, wait: bool = False, running: bool = True
    ) -> list[str]:
        """The units' own names, where aliases are given.

        Raises InvalidConfig, with names that may be meant, if there is no such unit, or nothing
        runs in it; with `wait` it may be missing, and without `running` it may be stopped.
        """
        with _answering("units", "cgroup"):
            return [await self._resolve(unit, wait=wait, running=running) for unit in units]

    async def _resolve(self, unit: str, *, wait: bool, running: bool) -> str:
        if "@." in unit:
            instances = await self._running(unit.partition("@")[0] + "@")
            raise InvalidConfig(
                f"{unit} is a template, which cannot run: name an instance{_meant(instances)}"
            )
        path = str(await self._ask("LoadUnit", unit))
        found = await self._properties(path, "Unit")
        loaded, active, sub = (found[name] for name in ("LoadState", "ActiveState", "SubState"))
        if wait:
            return str(found["Id"])
        stem = unit.rpartition(".")[0].partition("@")[0]
        if loaded != "loaded":
            names = await self._running("")
            near = [name for name in names if name.startswith(stem)]
            # the suffixes would make all of them alike
            stems = {name.rpartition(".")[0]: name for name in names}
            near = near or [stems[n] for n in get_close_matches(stem, stems, _SUGGESTED)]
            what = {"not-found": f"there is no unit {unit}", "masked": f"{unit} is masked"}.get(
                loaded, f"{unit} cannot be loaded ({loaded})"
            )
            raise InvalidConfig(f"{what}: accept it with --wait, or name another{_meant(near)}")
        if not running or populated(await self._cgroup(unit, path)):
            return str(found["Id"])
        near = [name for name in await self._running(stem) if name != unit]
        if active == "active":
            raise InvalidConfig(f"{unit} is active ({sub}), but has no processes{_meant(near)}")
        raise InvalidConfig(
            f"{unit} is not running ({active}): start it, or accept it with --wait{_meant(near)}"
        )

    async def _running(self, start: str) -> list[str]:
        """Running units with a cgroup, whose names begin with `start`."""
        units = await self._ask("ListUnits")
        assert isinstance(units, list)
        # a(ssssssouso): name, description, load, active and sub state, and more
        return sorted(
            unit[0]
            for unit in units
            if unit[4] == "running" and unit[0].startswith(start) and _HAS_CGROUP.search(unit[0])
        )

    async def _place(self, unit: str) -> str:
        path = str(await self._ask("LoadUnit", unit))
        if place := await self._cgroup(unit, path):
            return place
        if unit.endswith(".slice"):
            return _slice_path(unit)
        kind = unit.rpartition(".")[2].capitalize()
        own = str((await self._properties(path, "Unit"))["Id"])
        above = _slice_path(
            str((await self._properties(path, kind)).get("Slice") or "system.slice")
        )
        return f"{above}/{own}"

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
        """Asks systemd for signals about units, without which it sends none. It may be repeated."""
        try:
            await self._ask("Subscribe")
        except DBusError as error:
            if error.type != f"{SYSTEMD}.AlreadySubscribed":
                raise

    async def _properties(self, path: str, kind: str) -> dict[str, Any]:
        message = Message(
            destination=SYSTEMD,
            path=path,
            interface=_PROPERTIES,
            member="GetAll",
            signature="s",
            body=[f"{SYSTEMD}.{kind}"],
        )
        (values,) = await calls.call(self._connected(), message)
        return {name: value.value for name, value in values.items()}

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
            if name == SYSTEMD and new:  # it was executed again, or has started
                self._again = asyncio.ensure_future(self._subscribe_again())

    async def _subscribe_again(self) -> None:
        try:
            await self._subscribe()
        except (DBusError, TimeoutError, OSError) as error:
            log.warning("restarts of units may go unnoticed: %s", error)
        self._changed()
