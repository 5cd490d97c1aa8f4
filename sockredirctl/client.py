"""Calls of org.sockredir over the system bus, with every failure turned into a ClientError."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from dbus_next import BusType, Message, MessageType, Variant
from dbus_next.aio import MessageBus
from dbus_next.constants import MessageFlag

from sockredirctl import agent
from sockredirctl.errors import ClientError, Exit, NoBus, NotRunning

NAME = "org.sockredir"
PATH = "/org/sockredir"
INTERFACE = "org.sockredir.Manager1"
AUTHENTICATION_S = 300.0  # what somebody may take to type a password
_PROPERTIES = "org.freedesktop.DBus.Properties"

_NOT_RUNNING = (
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.Spawn.",
    "org.freedesktop.systemd1.",
)
_GONE = (
    "org.freedesktop.DBus.Error.NoReply",  # it left the bus before it answered
    "org.freedesktop.DBus.Error.Disconnected",
)
_ASK = "org.sockredir.Error.AccessDenied"
_DENIED = ("org.freedesktop.DBus.Error.AccessDenied", _ASK)
_TIMED_OUT = ("org.freedesktop.DBus.Error.Timeout", "org.freedesktop.DBus.Error.TimedOut")


def plain(value: Any) -> Any:
    """A D-Bus value without its Variants."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


class Client:
    """One connection to the bus; `timeout` in seconds bounds every call.

    No call starts the daemon unless it says so, since a daemon that starts restores acceleration.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._bus: MessageBus
        self._lost: asyncio.Future[None]  # done when the bus has gone

    async def connect(self) -> None:
        try:
            self._bus = await asyncio.wait_for(
                MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect(),
                self._timeout,
            )
        except TimeoutError as error:
            raise ClientError(
                "the D-Bus system bus does not answer: see systemctl status dbus", Exit.TIMED_OUT
            ) from error
        except Exception as error:  # dbus-next raises whatever its socket or parser raised
            raise NoBus(
                f"cannot reach the D-Bus system bus: {error}; see systemctl status dbus"
            ) from error
        self._lost = asyncio.ensure_future(self._bus.wait_for_disconnect())
        # asyncio would complain of an exception that nobody asks for
        self._lost.add_done_callback(lambda lost: lost.cancelled() or lost.exception())

    def disconnect(self) -> None:
        self._bus.disconnect()

    async def call(
        self,
        member: str,
        signature: str = "",
        *body: Any,
        interface: str = INTERFACE,
        fds: Sequence[int] = (),
        start: bool = False,
    ) -> Any:
        """The first value of the reply, or None. Raises ClientError; NotRunning without a daemon.

        If the daemon denies the call, it is made again, and polkit may ask for a password then.
        `start` lets the bus start the daemon, if its unit is enabled.
        """
        starting = MessageFlag.NONE if start else MessageFlag.NO_AUTOSTART

        def message(flags: MessageFlag) -> Message:
            return Message(
                destination=NAME,
                path=PATH,
                interface=interface,
                member=member,
                signature=signature,
                body=list(body),
                unix_fds=list(fds),
                flags=flags | starting,
            )

        reply = await self._ask(message(MessageFlag.NONE), self._timeout)
        if reply.error_name == _ASK and os.geteuid() != 0:
            with agent.running():
                reply = await self._ask(
                    message(MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION),
                    self._timeout + AUTHENTICATION_S,
                )
        if reply.message_type == MessageType.ERROR:
            raise _explain(reply.error_name, str(reply.body[0]) if reply.body else "")
        return plain(reply.body[0]) if reply.body else None

    async def ask(self, message: Message) -> Message:
        """The reply of any service on the bus, errors included; the call does not start it."""
        message.flags |= MessageFlag.NO_AUTOSTART
        return await self._ask(message, self._timeout)

    async def _ask(self, message: Message, timeout: float) -> Message:
        # dbus-next does not end a call whose reply cannot come any more
        asked = asyncio.ensure_future(self._bus.call(message))
        try:
            done, _ = await asyncio.wait(
                {asked, self._lost}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            asked.cancel()  # no effect once it is done
        if not done:
            raise ClientError(
                f"no answer to {message.member} within {timeout:g} s; it may still be carried out. "
                "To wait longer: --timeout",
                Exit.TIMED_OUT,
            )
        if asked not in done:
            raise ClientError("the system bus went away", Exit.NOT_RUNNING)
        try:
            return asked.result()
        except Exception as error:
            raise ClientError(f"the system bus went away: {error}", Exit.NOT_RUNNING) from error

    async def properties(self, *, start: bool = False) -> dict[str, Any]:
        result: dict[str, Any] = await self.call(
            "GetAll", "s", INTERFACE, interface=_PROPERTIES, start=start
        )
        return result

    async def property(self, name: str) -> Any:
        return await self.call("Get", "ss", INTERFACE, name, interface=_PROPERTIES)

    async def all_connections(self, query: dict[str, Variant]) -> list[dict[str, Any]]:
        """All connections of a query: the daemon writes them to a pipe, one by one."""
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _protocol = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb")
        )
        try:
            # read during the call: a pipe does not hold all of them
            reading = asyncio.create_task(reader.read())
            try:
                await self.call("WriteConnections", "ha{sv}", 0, query, fds=[write_end])
            finally:
                os.close(write_end)
            return [json.loads(line) for line in (await reading).splitlines()]
        finally:
            transport.close()

    async def events(
        self, show: Callable[[dict[str, Any]], None], begun: Callable[[], Awaitable[None]]
    ) -> None:
        """Subscribes, calls `begun`, and shows each event until it is cancelled.

        Raises ClientError when the daemon goes away, BrokenPipeError if `show` did.
        """
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def handle(message: Message) -> None:
            if message.message_type != MessageType.SIGNAL:
                return
            if message.interface == INTERFACE and message.member == "Event":
                try:
                    show(plain(message.body[0]))
                except BrokenPipeError as error:  # dbus-next would swallow it
                    if not gone.done():
                        gone.set_exception(error)
            elif message.member == "NameOwnerChanged" and not message.body[2] and not gone.done():
                gone.set_result(None)

        self._bus.add_message_handler(handle)
        await self.ask(
            Message(
                destination="org.freedesktop.DBus",
                path="/org/freedesktop/DBus",
                interface="org.freedesktop.DBus",
                member="AddMatch",
                signature="s",
                body=[f"type='signal',member='NameOwnerChanged',arg0='{NAME}'"],
            )
        )
        await self.call("Subscribe")
        await begun()
        await asyncio.wait({gone, self._lost}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            gone.result()
        raise ClientError("the daemon went away", Exit.NOT_RUNNING)


def _explain(name: str, text: str) -> ClientError:
    if name.startswith(_NOT_RUNNING):
        return NotRunning()
    if name.startswith(_GONE):
        return ClientError("the daemon went away", Exit.NOT_RUNNING)
    if name.startswith(_DENIED):
        return ClientError(f"not allowed: {text}", Exit.DENIED)
    if name.startswith(_TIMED_OUT):
        return ClientError(text or "timed out", Exit.TIMED_OUT)
    return ClientError(text or name)
