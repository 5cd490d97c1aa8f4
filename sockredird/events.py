"""Relays events of the datapath to the bus clients that subscribed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus

from sockredird import bus as dbus
from sockredird.layout import Event

log = logging.getLogger(__name__)

EVENTS_PER_SECOND = 2000


class EventRelay:
    """Lives on the event loop. A flood is cut off; the next event says how many were dropped."""

    def __init__(self, unwanted: Callable[[], None]) -> None:
        """`unwanted` is called when the last subscriber is gone."""
        self._unwanted = unwanted
        self._bus: MessageBus | None = None
        self._clients: set[str] = set()
        self._leaving: asyncio.Future[None] | None = None
        self._second = 0
        self._sent = 0
        self._dropped = 0

    def use(self, bus: MessageBus) -> None:
        """Sends on this connection from here on."""
        self._bus = bus
        bus.add_message_handler(self._owner_changed)

    def lose(self) -> None:
        """The bus is gone, and every subscriber with it."""
        self._bus = None
        if self._clients:
            self._clients.clear()
            self._unwanted()

    @property
    def wanted(self) -> bool:
        return bool(self._clients)

    async def add(self, client: str) -> None:
        if self._bus is not None and client not in self._clients:
            self._clients.add(client)
            await dbus.ask_bus(self._bus, "AddMatch", _match(client))
            # it may have left before the match was there
            if not await dbus.ask_bus(self._bus, "NameHasOwner", client):
                await self.discard(client)

    async def discard(self, client: str) -> None:
        if client not in self._clients:
            return
        self._clients.discard(client)
        if not self._clients:
            self._unwanted()
        if self._bus is not None:
            await dbus.ask_bus(self._bus, "RemoveMatch", _match(client))

    def record(self, raw: bytes) -> None:
        """One struct event from the ring buffer."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._sent = second, 0
        if self._sent >= EVENTS_PER_SECOND:
            self._dropped += 1
            return
        self._sent += 1
        event = Event.unpack(raw)
        body = {
            "time": Variant("t", event.time),
            "event": Variant("s", event.kind),
            "reason": Variant("s", event.reason),
            "client": Variant("s", event.flow.client),
            "server": Variant("s", event.flow.server),
            "netns": Variant("t", event.flow.netns),
            "dropped": Variant("t", self._dropped),
        }
        self._dropped = 0
        for client in self._clients:
            if self._bus is not None:
                dbus.send_event(self._bus, client, body)

    def _owner_changed(self, message: Message) -> None:
        """A subscriber that left the bus is forgotten."""
        if message.message_type == MessageType.SIGNAL and message.member == "NameOwnerChanged":
            name, _old, new = message.body
            if name in self._clients and not new:
                self._leaving = asyncio.ensure_future(self.discard(name))


def _match(client: str) -> str:
    return f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{client}'"
