"""In the place of dbus-daemon: lets through what that would refuse, to see what we do about it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from dbus_next import Variant

from sockredird.bus import connection, manager1
from sockredird.bus.connection import Connection
from sockredird.bus.wire import ERROR, METHOD_CALL, METHOD_RETURN, Framer, Header
from support.daemon import raw

_NAME = ":1.7"


def _string(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(4, "little") + data + b"\0"


class Backend:
    """Answers at once, and with next to nothing."""

    def __getattr__(self, name: str) -> Any:
        async def answer(*_arguments: Any, **_keys: Any) -> Any:
            answers: dict[str, Any] = {
                "stats": {"active_connections": 1},
                "bench_and_estimate": {"rows": [], "estimate": {}},
            }
            return answers.get(name, [])

        return answer

    def properties(self) -> dict[str, Variant]:
        return {
            "State": Variant("s", "disabled"),
            "Since": Variant("t", 1),
            "Scope": Variant("a{sv}", {}),
            "Units": Variant("a{ss}", {}),
            "Problem": Variant("s", ""),
        }

    def kernel(self) -> dict[str, Any]:
        return {}

    def live_connections(self) -> dict[str, Any]:
        return {"left": []}


class FakeBus:
    """One connection of the daemon to it; `uid` is that of whoever sends."""

    def __init__(self, path: Path, uid: int) -> None:
        self.path = path
        self._uid = uid
        self._framer = Framer()
        self._writer: asyncio.StreamWriter
        self._answered: dict[int, asyncio.Future[Header]] = {}
        self._serial = 1 << 30
        self.hung_up = asyncio.Event()
        self.bus: Connection

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        self.bus = await connection.connect()
        await manager1.publish(self.bus, Backend())  # type: ignore[arg-type]

    async def stop(self) -> None:
        if self.bus.connected:
            self.bus.disconnect()
        await self.hung_up.wait()
        self._server.close()
        self._writer.close()
        self.bus._stream.close()
        self.bus._sock.close()
        await asyncio.sleep(0)
        self.path.unlink(missing_ok=True)  # Python 3.13 and later do it

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def ping(self) -> Header:
        """The header of the answer to a call that is none of the daemon's business."""
        return await self.ask("org.freedesktop.DBus.Peer", "Ping")

    async def ask(self, interface: str, member: str, *arguments: str) -> Header:
        """The header of the answer to a call, whose arguments can be short strings only."""
        self._serial += 1
        future = self._answered[self._serial] = asyncio.get_running_loop().create_future()
        fields: dict[int, str | int] = {1: "/org/sockredir", 2: interface, 3: member, 7: ":1.99"}
        body = b""
        for argument in arguments:
            body += bytes(-len(body) % 4) + _string(argument)
        if arguments:
            fields[8] = "s" * len(arguments)
        await self.send(raw.build(METHOD_CALL, self._serial, fields, body))
        return await asyncio.wait_for(future, 2)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        assert await reader.readexactly(1) == b"\0"
        for answer in (b"OK 0123456789abcdef0123456789abcdef\r\n", b"AGREE_UNIX_FD\r\n"):
            await reader.readline()
            writer.write(answer)
        await reader.readline()  # BEGIN
        while data := await reader.read(1 << 16):
            for frame in self._framer.feed(data):
                assert frame.header is not None
                self._hear(frame.header)
        self.hung_up.set()

    def _hear(self, header: Header) -> None:
        if header.kind in (METHOD_RETURN, ERROR):
            waiting = self._answered.pop(header.reply_serial, None)
            if waiting is not None:
                waiting.set_result(header)
        elif header.kind == METHOD_CALL and not header.flags & raw.NO_REPLY:
            self._answer(header)

    def _answer(self, header: Header) -> None:
        numbers = {"RequestName": 1, "GetConnectionUnixUser": self._uid, "NameHasOwner": 1}
        fields: dict[int, str | int] = {5: header.serial, 7: "org.freedesktop.DBus"}
        kind, signature, body = METHOD_RETURN, "", b""
        if header.member == "Hello":
            signature, body = "s", _string(_NAME)
        elif header.member in numbers:
            signature = "b" if header.member == "NameHasOwner" else "u"
            body = numbers[header.member].to_bytes(4, "little")
        elif header.destination != "org.freedesktop.DBus":
            kind, signature, body = ERROR, "s", _string("there is none")
            fields[4] = "org.freedesktop.DBus.Error.ServiceUnknown"
        if signature:
            fields[8] = signature
        self._serial += 1
        self._writer.write(raw.build(kind, self._serial, fields, body))
