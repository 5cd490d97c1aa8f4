"""Calls the daemon itself makes over the bus."""

from __future__ import annotations

import asyncio
from typing import Any

from dbus_next import DBusError, Message, MessageFlag, MessageType
from dbus_next.aio import MessageBus

CALL_TIMEOUT_S = 5.0
PEER = "org.freedesktop.DBus.Peer"
DRIVER = "org.freedesktop.DBus"


def result(reply: Message | None) -> list[Any]:
    """The body of a reply. Raises DBusError if the reply is an error, or missing."""
    if reply is None or reply.message_type == MessageType.ERROR:
        name = reply.error_name if reply else "org.freedesktop.DBus.Error.NoReply"
        raise DBusError(name, str(reply.body[0]) if reply and reply.body else "no reply")
    body: list[Any] = reply.body
    return body


async def call(bus: MessageBus, message: Message) -> list[Any]:
    """The body of the reply. Raises DBusError for an error reply.

    Raises TimeoutError without a reply; a call after a disconnect would hang for ever otherwise.
    """
    return result(await asyncio.wait_for(bus.call(message), CALL_TIMEOUT_S))


async def ping(bus: MessageBus, client: str, path: str) -> None:
    """Returns when the client has answered, and so has read what was sent to it before."""
    # there is no time limit, and an error is an answer, too
    await bus.call(Message(destination=client, path=path, interface=PEER, member="Ping"))


def driver_call(member: str, argument: str) -> Message:
    """A call of the bus itself that takes one string."""
    return Message(
        destination=DRIVER,
        path="/org/freedesktop/DBus",
        interface=DRIVER,
        member=member,
        signature="s",
        body=[argument],
    )


async def ask_bus(bus: MessageBus, member: str, argument: str) -> Any:
    """The first value of the bus's reply, or None. Raises as call()."""
    body = await call(bus, driver_call(member, argument))
    return body[0] if body else None


def departure_rule(name: str) -> str:
    """The match rule for the signal by which departed() knows that `name` has left."""
    return f"type='signal',sender='{DRIVER}',member='NameOwnerChanged',arg0='{name}'"


def departed(message: Message) -> str:
    """The name that has left the bus, if that is what the message says; otherwise empty."""
    if (
        message.message_type == MessageType.SIGNAL
        and message.sender == DRIVER
        and message.member == "NameOwnerChanged"
    ):
        name, _old, new = message.body
        return "" if new else str(name)
    return ""


def tell(bus: MessageBus, message: Message) -> None:
    """Sends a call whose reply, or failure, changes nothing."""
    message.flags |= MessageFlag.NO_REPLY_EXPECTED
    if bus.connected:
        bus.send(message).add_done_callback(lambda sent: sent.cancelled() or sent.exception())
