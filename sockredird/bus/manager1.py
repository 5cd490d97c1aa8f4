"""The D-Bus object /org/sockredir: members, typed replies, errors, and who may call."""

# No `from __future__ import annotations`: dbus-next reads D-Bus signatures from annotations.

import asyncio
import contextvars
import functools
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, no_type_check

from dbus_next import BusType, DBusError, Message, MessageType, Variant
from dbus_next.aio import MessageBus
from dbus_next.constants import ErrorType, MessageFlag, NameFlag, PropertyAccess, RequestNameReply
from dbus_next.service import ServiceInterface, dbus_property, method, signal

from sockredird import __version__
from sockredird.bus.authority import Authority, Caller
from sockredird.bus.calls import CALL_TIMEOUT_S, ask_bus
from sockredird.errors import BusUnavailable, Internal, SockredirError

log = logging.getLogger(__name__)

NAME = "org.sockredir"
PATH = "/org/sockredir"
INTERFACE = "org.sockredir.Manager1"
CONNECTIONS_LIMIT = 1000

# dbus-next does not tell a handler who called; a message handler, which runs before it in the
# same context, does. The handler's task keeps a copy of the context, however long it waits.
_caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")

_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Any]])


class Backend(Protocol):
    """What the object does when called; daemon.py implements it."""

    async def enable(self, overrides: dict[str, Any] | None) -> None: ...
    async def disable(self) -> None: ...
    async def reload(self) -> None: ...
    async def stats(self) -> dict[str, int]: ...
    async def connections(self, limit: int, query: dict[str, Any]) -> list[dict[str, Any]]: ...
    async def write_connections(self, fd: int, query: dict[str, Any]) -> None: ...
    async def explain(self, keys: dict[str, Any]) -> list[dict[str, Any]]: ...
    async def check(self, everything: bool) -> list[dict[str, Any]]: ...
    async def learned(self) -> list[dict[str, Any]]: ...
    async def forget(self, identity: str) -> None: ...
    async def bench(self, port: int) -> list[dict[str, Any]]: ...
    async def subscribe(self, client: str) -> None: ...
    async def unsubscribe(self, client: str) -> None: ...
    def properties(self) -> dict[str, Variant]: ...
    def kernel(self) -> dict[str, Any]: ...


def variants(values: dict[str, Any]) -> dict[str, Variant]:
    """As a{sv}: numbers that count are `t`, measures `d`."""
    signatures = {bool: "b", int: "t", float: "d", str: "s"}
    return {name: Variant(signatures[type(value)], value) for name, value in values.items()}


def _answered(handler: _Handler) -> _Handler:
    """Turns errors into D-Bus errors; left alone, dbus-next would send the caller a traceback."""

    @functools.wraps(handler)
    async def wrapper(*args: Any) -> Any:
        try:
            return await handler(*args)
        except SockredirError as error:
            raise DBusError(f"{NAME}.Error.{error.name}", str(error)) from error
        except DBusError:
            raise
        except Exception as error:
            log.exception("%s failed", handler.__name__)
            text = f"internal error ({type(error).__name__}: {error}); the daemon's log has more"
            raise DBusError(f"{NAME}.Error.{Internal.name}", text) from error

    return wrapper  # type: ignore[return-value]


class Manager1(ServiceInterface):  # type: ignore[misc]
    """org.sockredir.Manager1. The annotations are D-Bus signatures."""

    def __init__(self, backend: Backend, bus: MessageBus) -> None:
        super().__init__(INTERFACE)
        self._backend = backend
        self._authority = Authority(bus)

    async def _authorise(self) -> None:
        """Raises AccessDenied unless the caller may manage."""
        await self._authority.require(_caller.get())

    @method()
    @_answered
    @no_type_check
    async def Enable(self):
        await self._authorise()
        await self._backend.enable(None)

    @method()
    @_answered
    @no_type_check
    async def EnableWith(self, scope: "a{sv}"):
        await self._authorise()
        await self._backend.enable({name: value.value for name, value in scope.items()})

    @method()
    @_answered
    @no_type_check
    async def Disable(self):
        await self._authorise()
        await self._backend.disable()

    @method()
    @_answered
    @no_type_check
    async def Reload(self):
        await self._authorise()
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
        """All of them, which no reply could hold: a line of JSON for each, in no order."""
        try:
            await self._authorise()
            if pipe is None:
                raise DBusError(ErrorType.INVALID_ARGS, "no file descriptor came with the call")
            keys = {name: value.value for name, value in query.items()}
            await self._backend.write_connections(pipe, keys)
        finally:
            if pipe is not None:
                os.close(pipe)

    async def _connections(self, limit: int, query: dict[str, Variant]) -> list[dict[str, Variant]]:
        await self._authorise()
        keys = {name: value.value for name, value in query.items()}
        # 0 asks for as many as there are; a reply is built and sent whole, so it has a limit
        limit = min(limit or CONNECTIONS_LIMIT, CONNECTIONS_LIMIT)
        return [variants(item) for item in await self._backend.connections(limit, keys)]

    @method()
    @_answered
    @no_type_check
    async def Explain(self, keys: "a{sv}") -> "aa{sv}":
        await self._authorise()
        values = {name: value.value for name, value in keys.items()}
        return [variants(item) for item in await self._backend.explain(values)]

    @method()
    @_answered
    @no_type_check
    async def Check(self) -> "aa{sv}":
        everything = await self._authority.is_root(_caller.get())
        return [variants(finding) for finding in await self._backend.check(everything)]

    @method()
    @_answered
    @no_type_check
    async def Bench(self, port: "q") -> "aa{sv}":  # noqa: F821
        await self._authorise()
        return [variants(row) for row in await self._backend.bench(port)]

    @method()
    @_answered
    @no_type_check
    async def Learned(self) -> "aa{sv}":
        await self._authorise()
        return [variants(item) for item in await self._backend.learned()]

    @method()
    @_answered
    @no_type_check
    async def Forget(self, identity: "s"):  # noqa: F821
        await self._authorise()
        await self._backend.forget(identity)

    @method()
    @_answered
    @no_type_check
    async def Subscribe(self):
        await self._authorise()
        await self._backend.subscribe(_caller.get().name)

    @method()
    @_answered
    @no_type_check
    async def Unsubscribe(self):
        await self._backend.unsubscribe(_caller.get().name)

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

    @signal(name="Event")
    @no_type_check
    def event(self, event: "a{sv}") -> "a{sv}":
        """Declared for introspection; send_event() sends it to subscribers only."""
        return event


class _Bus(MessageBus):  # type: ignore[misc]
    def _finalize(self, err: Exception | None = None) -> None:
        """dbus-next takes a socket that is full for a broken one, and would hang up.

        Its writer waits for room anyway: it has kept what it could not send, and stays registered.
        """
        if not isinstance(err, BlockingIOError):
            super()._finalize(err)

    def send(self, message: Message) -> asyncio.Future[None]:
        """Raises ConnectionError once disconnected.

        dbus-next would take over the descriptor that was its own, which a new connection to the bus
        may have by then.
        """
        if not self.connected:
            raise ConnectionError("the bus is gone, and whoever waits for this with it")
        sent: asyncio.Future[None] = super().send(message)
        return sent


async def connect() -> MessageBus:
    """A connection to the system bus. Raises BusUnavailable."""
    try:
        bus = _Bus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
        return await asyncio.wait_for(bus.connect(), CALL_TIMEOUT_S)
    except Exception as error:  # dbus-next raises whatever its socket or its parser raised
        raise BusUnavailable(
            f"cannot reach the D-Bus system bus ({error}): is dbus.service running, "
            "or is DBUS_SYSTEM_BUS_ADDRESS set to a private bus?"
        ) from error


async def name_is_free(bus: MessageBus) -> bool:
    return not await ask_bus(bus, "NameHasOwner", NAME)


async def publish(bus: MessageBus, backend: Backend) -> Manager1:
    """Exports the object, then takes the bus name: nobody sees the name without the object.

    Raises BusUnavailable if the name is taken or not allowed.
    """

    def note_caller(message: Message) -> None:
        # dbus-next would keep the others open: anybody who may call could exhaust ours
        for fd in message.unix_fds[1 if _brings_pipe(message) else 0 :]:
            os.close(fd)
        if message.message_type == MessageType.METHOD_CALL:
            interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
            _caller.set(Caller(message.sender or "", interactive))

    bus.add_message_handler(note_caller)
    interface = Manager1(backend, bus)
    bus.export(PATH, interface)
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


def _brings_pipe(message: Message) -> bool:
    """Whether WriteConnections() will run and own the first descriptor that came with this."""
    return (
        message.message_type == MessageType.METHOD_CALL
        and (message.path, message.interface) == (PATH, INTERFACE)
        and (message.member, message.signature) == ("WriteConnections", "ha{sv}")
        and message.body[0] == 0
    )


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
    # that the socket was full for a moment is kept in the future, which asks to be looked at
    sent.add_done_callback(lambda future: future.cancelled() or future.exception())
