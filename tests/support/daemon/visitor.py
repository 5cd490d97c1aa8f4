"""A caller without privileges, in the child of an Actor: one connection, call by call."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from dbus_next import MessageType, Variant
from dbus_next.constants import MessageFlag

import sockredirctl.__main__
from support.daemon.client import Client, message
from support.daemon.users import NOBODY, become

_client: Client
BODIES = {
    "Bench": ("q", 0),
    "BenchWith": ("a{sv}", {}),
    "Connections": ("u", 0),
    "ConnectionsWith": ("ua{sv}", 0, {}),
    "WriteConnections": ("ha{sv}", 0, {}),
    "EnableWith": ("a{sv}", {"only_ports": Variant("au", [7])}),
    "DisableWith": ("a{sv}", {}),
    "Explain": ("a{sv}", {}),
    "Forget": ("s", ""),
}


def connect(address: str, uid: int = NOBODY) -> str:
    """The name on the bus from here on."""
    global _client
    become(uid)
    _client = Client(address)
    return _client.name


def name() -> str:
    return _client.name


def call(member: str, interactive: bool = False) -> tuple[str, str]:
    """Name and text of the error, or two empty strings."""
    return call_all([member], interactive)[0]


def call_all(members: list[str], interactive: bool = False) -> list[tuple[str, str]]:
    """Answers to calls that are on their way at once."""
    flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else MessageFlag.NONE
    replies = _client.call_all(
        *(message(member, *BODIES.get(member, ("",)), flags=flags) for member in members)
    )
    return [
        (reply.error_name, reply.body[0]) if reply.message_type == MessageType.ERROR else ("", "")
        for reply in replies
    ]


def await_event() -> str:
    """The kind of the first event that arrives after Subscribe."""
    event = _client.await_signal(lambda signal: signal.member == "Event")
    return str(event.body[0]["event"].value)


def call_with_descriptors(member: str, signature: str, body: list[Any]) -> None:
    """A call that brings three of them, and its answer."""
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    call = message(member, signature, *body)
    call.unix_fds = fds
    _client.call_all(call)
    for fd in fds:
        os.close(fd)


def main(address: str, path: str, *arguments: str) -> int:
    """Exit status of sockredirctl, run here; its module is imported already."""
    become(NOBODY)
    sys.argv = ["sockredirctl", *arguments]
    os.environ.update(DBUS_SYSTEM_BUS_ADDRESS=address, PATH=path)
    logging.getLogger().handlers.clear()  # pytest's
    return int(sockredirctl.__main__.main())


def main_on_terminal(address: str, path: str, *arguments: str) -> int:
    """As main(), with a terminal as standard input."""
    _keyboard, terminal = os.openpty()
    with os.fdopen(terminal) as sys.stdin:
        return main(address, path, *arguments)
