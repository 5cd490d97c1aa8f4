"""The D-Bus object /org/sockredir: members, typed replies, errors, and who may call."""

# No `from __future__ import annotations`: dbus-next reads D-Bus signatures from annotations.

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, no_type_check

from dbus_next import DBusError, Message, MessageType, Variant
from dbus_next.aio import MessageBus
from dbus_next.constants import NameFlag, PropertyAccess, RequestNameReply
from dbus_next.service import ServiceInterface, dbus_property, method, signal

from sockredird import __version__
from sockredird.bus.calls import CALL_TIMEOUT_S, ask_bus
from sockredird.bus.connection import Connection, Member, caller
from sockredird.errors import (
    BusUnavailable,
    Busy,
    Internal,
    InvalidConfig,
    SockredirError,
    printable,
)
from sockredird.kernel import files

NAME = "org.sockredir"
PATH = "/org/sockredir"
INTERFACE = "org.sockredir.Manager1"
CONNECTIONS_LIMIT = 1000

# Members for everybody. The others are for those who may manage, which connection.py checks before
# it passes a call on.
_OPEN = {"Stats", "Check", "Unsubscribe"}
_DESCRIPTORS = {"WriteConnections": 1}

_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Any]])


class Backend(Protocol):
    """What the object does when called; daemon.py implements it."""

    async def enable(self, overrides: dict[str, Any] | None) -> None: ...
    async def disable(self, force: bool) -> None: ...
    async def reload(self) -> None: ...
    async def stats(self) -> dict[str, int]: ...
    async def connections(self, limit: int, query: dict[str, Any]) -> list[dict[str, Any]]: ...
    async def write_connections(self, fd: int, query: dict[str, Any]) -> None: ...
    async def explain(self, keys: dict[str, Any]) -> list[dict[str, Any]]: ...
    async def check(self, everything: bool) -> list[dict[str, Any]]: ...
    async def learned(self) -> list[dict[str, Any]]: ...
    async def forget(self, identity: str) -> None: ...
    async def bench(self, port: int) -> list[dict[str, Any]]: ...
    async def bench_and_estimate(self, port: int) -> dict[str, Any]: ...
    async def subscribe(self, client: str) -> None: ...
    async def unsubscribe(self, client: str) -> None: ...
    def properties(self) -> dict[str, Variant]: ...
    def kernel(self) -> dict[str, Any]: ...
    def live_connections(self) -> dict[str, Any]: ...


def variants(values: dict[str, Any]) -> dict[str, Variant]:
    """`values` as a{sv}; an int becomes `t`, a float `d`."""
    signatures = {bool: "b", int: "t", float: "d", str: "s"}
    return {name: Variant(signatures[type(value)], value) for name, value in values.items()}


def _answered(handler: _Handler) -> _Handler:
    """Turns errors into D-Bus errors; left alone, dbus-next would send the caller a traceback."""

    @functools.wraps(handler)
    async def wrapper(self: "Manager1", *args: Any) -> Any:
        sender, member = caller.get().name, handler.__name__
        try:
            return await handler(self, *args)
        except SockredirError as error:
            self.refusals.note(sender, f"{member}: {error}")
            raise DBusError(f"{NAME}.Error.{error.name}", printable(str(error))) from error
        except Exception as error:
            passing = isinstance(error, OSError) and error.errno in files.PASSING
            kind: type[SockredirError]
            if passing:
                kind, text = Busy, f"{error}: the daemon or the host is overloaded; try again later"
            else:
                what = f"{type(error).__name__}: {error}"
                kind, text = Internal, f"internal error ({what}); the daemon's log has more"
            self.refusals.note(sender, f"{member} failed: {error!r}", failed=not passing)
            raise DBusError(f"{NAME}.Error.{kind.name}", printable(text)) from error

    return wrapper  # type: ignore[return-value]


class Manager1(ServiceInterface):  # type: ignore[misc]
    """org.sockredir.Manager1. The annotations are D-Bus signatures."""

    def __init__(self, backend: Backend, bus: Connection) -> None:
        super().__init__(INTERFACE)
        self._backend = backend
        self._bus = bus
        self.refusals = bus.refusals

    @method()
    @_answered
    @no_type_check
    async def Enable(self):
        await self._backend.enable(None)

    @method()
    @_answered
    @no_type_check
    async def EnableWith(self, scope: "a{sv}"):
        await self._backend.enable({name: value.value for name, value in scope.items()})

    @method()
    @_answered
    @no_type_check
    async def Disable(self):
        await self._backend.disable(force=False)

    @method()
    @_answered
    @no_type_check
    async def DisableWith(self, options: "a{sv}"):
        """`force` b: reset what has not drained by the end of the timeout."""
        values = {name: value.value for name, value in options.items()}
        force = values.pop("force", False)
        if values:
            raise InvalidConfig(f"{', '.join(sorted(values))}: unknown option; there is only force")
        if not isinstance(force, bool):
            raise InvalidConfig("force: must be true or false")
        await self._backend.disable(force=force)

    @method()
    @_answered
    @no_type_check
    async def Reload(self):
        await self._backend.reload()

    @method()
    @_answered
    @no_type_check
    async def Stats(self) -> "a{sv}":
        return {name: Variant("t", value) for name, value in (await self._backend.stats()).items()}

    @method()
    @_answered
    @no_type_check
    async def Connections(self, limit: "u") -> "aa{sv}":  # noqa: F821
        return await self._connections(limit, {})

    @method()
    @_answered
    @no_type_check
    async def ConnectionsWith(self, limit: "u", query: "a{sv}") -> "aa{sv}":  # noqa: F821
        return await self._connections(limit, query)

    @method()
    @_answered
    @no_type_check
    async def WriteConnections(self, pipe: "h", query: "a{sv}"):  # noqa: F821
        """Writes all connections, which no reply could hold: a line of JSON each, in no order."""
        try:
            keys = {name: value.value for name, value in query.items()}
            await self._backend.write_connections(pipe, keys)
        finally:
            os.close(pipe)

    async def _connections(self, limit: int, query: dict[str, Variant]) -> list[dict[str, Variant]]:
        keys = {name: value.value for name, value in query.items()}
        # 0 asks for as many as there are; a reply is built and sent whole, so it has a limit
        limit = min(limit or CONNECTIONS_LIMIT, CONNECTIONS_LIMIT)
        return [variants(item) for item in await self._backend.connections(limit, keys)]

    @method()
    @_answered
    @no_type_check
    async def Explain(self, keys: "a{sv}") -> "aa{sv}":
        values = {name: value.value for name, value in keys.items()}
        return [variants(item) for item in await self._backend.explain(values)]

    @method()
    @_answered
    @no_type_check
    async def Check(self) -> "aa{sv}":
        everything = await self._bus.authority.is_root(caller.get())
        return [variants(finding) for finding in await self._backend.check(everything)]

    @method()
    @_answered
    @no_type_check
    async def Bench(self, port: "q") -> "aa{sv}":  # noqa: F821
        return [variants(row) for row in await self._backend.bench(port)]

    @method()
    @_answered
    @no_type_check
    async def BenchWith(self, options: "a{sv}") -> "a{sv}":
        """`port` q. Returns `rows`, as Bench does, and `estimate`, an a{sv} for each kind."""
        values = {name: value.value for name, value in options.items()}
        port = values.pop("port", 0)
        if values:
            raise InvalidConfig(f"{', '.join(sorted(values))}: unknown option; there is only port")
        if type(port) is not int or not 0 <= port <= 65535:
            raise InvalidConfig("port: must be a number from 0 to 65535; 0 is any")
        result = await self._backend.bench_and_estimate(port)
        kinds = result["estimate"].items()
        return {
            "rows": Variant("aa{sv}", [variants(row) for row in result["rows"]]),
            "estimate": Variant(
                "a{sv}", {kind: Variant("a{sv}", variants(found)) for kind, found in kinds}
            ),
        }

    @method()
    @_answered
    @no_type_check
    async def Learned(self) -> "aa{sv}":
        return [variants(item) for item in await self._backend.learned()]

    @method()
    @_answered
    @no_type_check
    async def Forget(self, identity: "s"):  # noqa: F821
        await self._backend.forget(identity)

    @method()
    @_answered
    @no_type_check
    async def Subscribe(self):
        await self._backend.subscribe(caller.get().name)

    @method()
    @_answered
    @no_type_check
    async def Unsubscribe(self):
        await self._backend.unsubscribe(caller.get().name)

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def Version(self) -> "s":  # noqa: F821
        return __version__

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def State(self) -> "s":  # noqa: F821
        return self._backend.properties()["State"].value

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def Since(self) -> "t":  # noqa: F821
        return self._backend.properties()["Since"].value

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def Scope(self) -> "a{sv}":
        return self._backend.properties()["Scope"].value

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def Units(self) -> "a{ss}":
        """Units in scope by name: the cgroup of each, empty while it has none."""
        return self._backend.properties()["Units"].value

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def Problem(self) -> "s":  # noqa: F821
        """What is wrong with the datapath, and the remedy; empty if nothing is."""
        return self._backend.properties()["Problem"].value

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def Sources(self) -> "a{ss}":
        """Where each key of the scope comes from: option, file, default, or two of them."""
        return self._backend.properties()["Sources"].value

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def Kernel(self) -> "a{sv}":
        """How the running kernel passed the last check; not signalled."""
        return variants(self._backend.kernel())

    @dbus_property(access=PropertyAccess.READ)
    @no_type_check
    def LiveConnections(self) -> "a{sv}":
        """What the looks for connections that could be joined came to; not signalled."""
        values = self._backend.live_connections()
        left = Variant("aa{sv}", [variants(one) for one in values.pop("left")])
        return {**variants(values), "left": left}

    @signal(name="Event")
    @no_type_check
    def event(self, event: "a{sv}") -> "a{sv}":
        """Declared for introspection; send_event() sends it to subscribers only."""
        return event


async def name_is_free(bus: Connection) -> bool:
    return not await ask_bus(bus, "NameHasOwner", NAME)


async def publish(bus: Connection, backend: Backend) -> Manager1:
    """Exports the object, then takes the bus name: nobody sees the name without the object.

    Raises BusUnavailable if the name is taken or not allowed.
    """

    interface = Manager1(backend, bus)
    bus.export(PATH, interface)
    bus.admit(
        {
            (INTERFACE, member.name): Member(
                member.in_signature, member.name in _OPEN, _DESCRIPTORS.get(member.name, 0)
            )
            for member in ServiceInterface._get_methods(interface)
        }
    )
    try:
        # dbus-next does not raise when the name is queued for, so the reply is checked
        reply = await asyncio.wait_for(
            bus.request_name(NAME, NameFlag.DO_NOT_QUEUE), CALL_TIMEOUT_S
        )
    except (DBusError, TimeoutError) as error:
        raise BusUnavailable(
            f"the bus refuses the name {NAME} ({error}): "
            "is /usr/share/dbus-1/system.d/org.sockredir.conf installed?"
        ) from error
    if reply != RequestNameReply.PRIMARY_OWNER:
        raise BusUnavailable(f"the bus name {NAME} is taken: another sockredird is running")
    return interface


def send_event(bus: MessageBus, client: str, event: dict[str, Variant]) -> None:
    """Unicast: a broadcast would tell every process on the bus who talks to whom."""
    message = Message(
        destination=client,
        path=PATH,
        interface=INTERFACE,
        member="Event",
        message_type=MessageType.SIGNAL,
        signature="a{sv}",
        body=[event],
    )
    sent = bus.send(message)
    # asyncio logs an exception of a future that is not looked at, as for a socket that was full
    sent.add_done_callback(lambda future: future.cancelled() or future.exception())
