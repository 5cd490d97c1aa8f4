"""Relays events of the datapath to the bus clients that subscribed.

A subscriber gets as many events as it keeps up with: while WINDOW of them are unread, further ones
are dropped for it, and counted, until it has answered a ping sent behind those. So neither the
daemon nor the bus holds more than that for a subscriber, and neither waits for one.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dbus_next import Message, Variant
from dbus_next.aio import MessageBus

from sockredird.bus import calls
from sockredird.bus import manager1 as dbus
from sockredird.loader.header import record
from sockredird.loader.records import SIDES, Event

log = logging.getLogger(__name__)

WINDOW = 512  # unread events of one subscriber
# To all subscribers together: what the event loop can send and still do its other work.
SENDS_PER_SECOND = 4000
_LOST = struct.Struct("=II")  # cpu and lost in struct event
_LOST_OFFSET = record("event").offsets["cpu"]


@dataclass
class _Subscriber:
    name: str
    unread: int = 0
    dropped: int = 0
    ping: asyncio.Task[None] | None = field(default=None, repr=False)


def _body(event: Event) -> dict[str, Variant]:
    body: dict[str, Any] = {
        "time": event.time,
        "event": event.kind,
        "reason": event.reason,
        "client": event.flow.client,
        "server": event.flow.server,
        "netns": event.flow.netns,
    }
    for side, end in zip(SIDES, (event.client, event.server), strict=True):
        if end.pid:
            body[f"{side}_pid"] = end.pid
            body[f"{side}_comm"] = end.comm
        if event.kind in ("retired", "closed"):
            body[f"{side}_sent_bytes"] = end.bytes
            body[f"{side}_sent_messages"] = end.messages
            body[f"{side}_tcp_bytes"] = end.tcp_bytes
    return dbus.variants(body)


class EventRelay:
    """Lives on the event loop."""

    def __init__(self, unwanted: Callable[[], None]) -> None:
        """`unwanted` is called when the last subscriber is gone."""
        self._unwanted = unwanted
        self._bus: MessageBus | None = None
        self._clients: dict[str, _Subscriber] = {}
        self._leaving: set[asyncio.Task[None]] = set()  # the loop itself keeps weak references
        self._second = 0
        self._sent = 0
        self._flush: asyncio.TimerHandle | None = None
        self._lost: dict[int, int] = {}  # by CPU, as the datapath counts

    def use(self, bus: MessageBus) -> None:
        """Sends on this connection from now on."""
        self._bus = bus
        bus.add_message_handler(self._note_departure)

    def lose(self) -> None:
        """The bus is gone, and every subscriber with it."""
        self._bus = None
        if self._clients:
            self._forget_all()
            self._unwanted()

    @property
    def wanted(self) -> bool:
        return bool(self._clients)

    async def add(self, client: str) -> None:
        """Subscribes a client. Raises DBusError or TimeoutError if the bus cannot be asked."""
        if self._bus is not None and client not in self._clients:
            self._clients[client] = _Subscriber(client)
            try:
                await calls.ask_bus(self._bus, "AddMatch", calls.departure_rule(client))
                # it may have left before the match was there
                stays = await calls.ask_bus(self._bus, "NameHasOwner", client)
            except BaseException:
                self._clients.pop(client, None)  # its departure would go unnoticed
                raise
            if not stays:
                await self.discard(client)

    async def discard(self, client: str) -> None:
        subscriber = self._clients.pop(client, None)
        if subscriber is None:
            return
        if subscriber.ping is not None:
            subscriber.ping.cancel()
        if not self._clients:
            self._forget_all()
            self._unwanted()
        if self._bus is not None:
            await calls.ask_bus(self._bus, "RemoveMatch", calls.departure_rule(client))

    def record(self, raw: bytes) -> None:
        """Sends one struct event from the ring buffer to the subscribers."""
        lost = self._newly_lost(raw)
        body: dict[str, Variant] | None = None
        for subscriber in self._clients.values():
            subscriber.dropped += lost
            if subscriber.unread >= WINDOW or not self._may_send():
                subscriber.dropped += 1
                continue
            if body is None:
                body = _body(Event.unpack(raw))
            self._send(subscriber, body)

    # -- sending -----------------------------------------------------------------------------

    def _send(self, subscriber: _Subscriber, body: dict[str, Variant]) -> None:
        if self._bus is None:
            return
        dropped, subscriber.dropped = subscriber.dropped, 0
        body["dropped"] = Variant("t", dropped)
        dbus.send_event(self._bus, subscriber.name, body)
        self._sent += 1
        subscriber.unread += 1
        if subscriber.unread >= WINDOW // 2 and subscriber.ping is None:
            subscriber.ping = asyncio.ensure_future(self._await_reader(self._bus, subscriber))

    async def _await_reader(self, bus: MessageBus, subscriber: _Subscriber) -> None:
        """Waits for the reply to a ping behind the events, which proves that they were read."""
        sent_before = subscriber.unread
        try:
            await calls.ping(bus, subscriber.name, dbus.PATH)
        except Exception as error:  # the bus went away, which the daemon sees by itself
            log.debug("no answer from %s: %s", subscriber.name, error)
        subscriber.ping = None
        subscriber.unread -= sent_before
        self._tell_dropped(subscriber)

    def _tell_dropped(self, subscriber: _Subscriber) -> None:
        """Reports dropped events by an event of its own, as no other may come for long."""
        if subscriber.dropped and subscriber.unread < WINDOW and self._may_send():
            body = {"time": time.monotonic_ns(), "event": "dropped"}
            self._send(subscriber, dbus.variants(body))

    def _may_send(self) -> bool:
        now = time.monotonic()
        if int(now) != self._second:
            self._second, self._sent = int(now), 0
        if self._sent < SENDS_PER_SECOND:
            return True
        if self._flush is None:
            loop = asyncio.get_running_loop()
            self._flush = loop.call_later(self._second + 1.01 - now, self._tell_all)
        return False

    def _tell_all(self) -> None:
        self._flush = None
        for subscriber in self._clients.values():
            self._tell_dropped(subscriber)

    def _newly_lost(self, raw: bytes) -> int:
        """Events that found the ring buffer full since the last one from the same CPU."""
        cpu: int
        lost: int
        cpu, lost = _LOST.unpack_from(raw, _LOST_OFFSET)
        before = self._lost.get(cpu, lost)
        self._lost[cpu] = lost
        # another generation counts from 0
        return lost - before if lost >= before else lost

    # -- subscribers -------------------------------------------------------------------------

    def _forget_all(self) -> None:
        for subscriber in self._clients.values():
            if subscriber.ping is not None:
                subscriber.ping.cancel()
        self._clients.clear()
        self._lost.clear()
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None

    def _note_departure(self, message: Message) -> None:
        """A subscriber that left the bus is forgotten."""
        name = calls.departed(message)
        if name in self._clients:
            task = asyncio.ensure_future(self.discard(name))
            self._leaving.add(task)
            task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("a match rule of a departed subscriber may remain: %s", error)
