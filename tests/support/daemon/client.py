"""A D-Bus client for tests: calls one after the other, and signals to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

from dbus_next import DBusError, Message, MessageType, Variant
from dbus_next.aio import MessageBus
from dbus_next.constants import MessageFlag

NAME = "org.sockredir"
PATH = "/org/sockredir"
INTERFACE = "org.sockredir.Manager1"
PROPERTIES = "org.freedesktop.DBus.Properties"
BUS = "org.freedesktop.DBus"
TIMEOUT_S = 60.0


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
    """A connection with an event loop of its own, which runs only inside of its methods."""

    def __init__(self, address: str) -> None:
        self.signals: list[Message] = []
        self._arrived = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._bus = self._loop.run_until_complete(self._connect(address))
        self._bus.add_message_handler(self._keep)

    async def _connect(self, address: str) -> MessageBus:
        return await asyncio.wait_for(MessageBus(address).connect(), TIMEOUT_S)

    def _keep(self, message: Message) -> bool:
        """Whether dbus-next has nothing to do with it any more."""
        if message.message_type == MessageType.SIGNAL and message.member != "NameAcquired":
            self.signals.append(message)
            self._arrived.set()
        return False

    @property
    def name(self) -> str:
        return str(self._bus.unique_name)

    def call_all(self, *messages: Message) -> list[Message]:
        """Replies, errors included, to calls that are all on their way at once."""

        async def gather() -> list[Message]:
            calls = (self._bus.call(message) for message in messages)
            return list(await asyncio.wait_for(asyncio.gather(*calls), TIMEOUT_S))

        return self._loop.run_until_complete(gather())

    def call(
        self,
        member: str,
        signature: str = "",
        *body: Any,
        destination: str = NAME,
        path: str = PATH,
        interface: str = INTERFACE,
    ) -> Any:
        """First value of the reply without Variants, or None. DBusError for an error reply."""
        return plain(
            self.raw(
                member,
                signature,
                *body,
                destination=destination,
                path=path,
                interface=interface,
            )
        )

    def raw(self, member: str, signature: str = "", *body: Any, **where: str) -> Any:
        """As call(), with the Variants."""
        (reply,) = self.call_all(message(member, signature, *body, **where))
        if reply.message_type == MessageType.ERROR:
            raise DBusError(reply.error_name, reply.body[0] if reply.body else "")
        return reply.body[0] if reply.body else None

    def begin(self, member: str) -> None:
        """Sends a call and does not wait for its answer."""
        self.send(message(member))

    def send(self, *messages: Message) -> None:
        async def send() -> None:
            for message in messages:
                await self._bus.send(message)

        self._loop.run_until_complete(send())

    def get(self, name: str) -> Any:
        return self.call("Get", "ss", INTERFACE, name, interface=PROPERTIES)

    def ask_bus(self, member: str, signature: str, *body: Any) -> Any:
        path = "/org/freedesktop/DBus"
        return self.call(member, signature, *body, destination=BUS, path=path, interface=BUS)

    def match(self, rule: str) -> None:
        self.ask_bus("AddMatch", "s", rule)

    def follow_state(self) -> None:
        """From here on await_state() sees changes."""
        self.match(f"type='signal',path='{PATH}',member='PropertiesChanged'")

    def await_signal(
        self, wanted: Callable[[Message], bool], timeout: float = TIMEOUT_S
    ) -> Message:
        """The first signal, from those already here on, that `wanted` accepts."""

        async def wait() -> Message:
            while True:
                found = next(filter(wanted, self.signals), None)
                if found is not None:
                    return found
                self._arrived.clear()
                await self._arrived.wait()

        return self._loop.run_until_complete(asyncio.wait_for(wait(), TIMEOUT_S))

    def await_state(self, state: str) -> None:
        """Returns once State is `state`; needs follow_state() before the change."""

        def shows(signal: Message) -> bool:
            changed = signal.member == "PropertiesChanged"
            return changed and bool(plain(signal.body[1]).get("State") == state)

        if self.get("State") != state:
            self.await_signal(shows)

    def close(self) -> None:
        async def disconnect() -> None:
            self._bus.disconnect()
            await self._bus.wait_for_disconnect()

        self._loop.run_until_complete(disconnect())
        # dbus-next leaves them to the garbage collector, which pytest hears of
        self._bus._stream.close()
        self._bus._sock.close()
        self._loop.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def message(
    member: str,
    signature: str = "",
    *body: Any,
    destination: str = NAME,
    path: str = PATH,
    interface: str = INTERFACE,
    flags: MessageFlag = MessageFlag.NONE,
) -> Message:
    return Message(
        destination=destination,
        path=path,
        interface=interface,
        member=member,
        signature=signature,
        body=list(body),
        flags=flags,
    )
