"""The scrape endpoint: GET /metrics on a unix socket or a loopback port. Off unless configured.

Serves what `sockredirctl stats --format` prints, in the format the scraper asks for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sockredird import config
from sockredird.errors import SockredirError

log = logging.getLogger(__name__)

REQUEST_LIMIT = 8192
REQUEST_TIMEOUT_S = 5.0

# properties and counters, as the bus object has them
Read = Callable[[], Awaitable[tuple[dict[str, Any], dict[str, int]]]]


class Endpoint:
    def __init__(self, read: Read) -> None:
        self._read = read
        self._listen = ""
        self._server: asyncio.Server | None = None

    async def use(self, listen: str) -> None:
        """Moves to another address, or nowhere. That it cannot is logged: the rest goes on."""
        if listen == self._listen:
            return
        self.close()
        self._listen = listen
        address = config.listen_address(listen)
        try:
            if isinstance(address, Path):
                await asyncio.to_thread(_remove_stale, address)
                self._server = await asyncio.start_unix_server(self._serve, address)
            elif address is not None:
                host, port = address
                self._server = await asyncio.start_server(self._serve, host, port)
        except OSError as error:
            self._listen = ""
            log.error("no metrics: cannot listen on %s: %s", listen, error)
            return
        if self._server is not None:
            log.info("metrics on %s", listen)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        address = config.listen_address(self._listen)
        if isinstance(address, Path):
            address.unlink(missing_ok=True)
        self._listen = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError, asyncio.IncompleteReadError, TimeoutError):
            request = asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_TIMEOUT_S)
            status, kind, body = await self._answer((await request).decode("latin-1"))
            head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
            await asyncio.wait_for(writer.drain(), REQUEST_TIMEOUT_S)
        writer.close()

    async def _answer(self, request: str) -> tuple[str, str, bytes]:
        line, *rest = request.split("\r\n")
        match line.split(" "):
            case ["GET", "/metrics", _]:
                pass
            case ["GET", *_]:
                return "404 Not Found", "text/plain", b"see /metrics\n"
            case _:
                return "405 Method Not Allowed", "text/plain", b"GET only\n"
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (header.partition(":") for header in rest)
        }
        # of the client package: it owns the names of the metrics. Loaded here, as few need it.
        from sockredirctl import metrics

        try:
            properties, stats = await self._read()
        except SockredirError as error:
            return "503 Service Unavailable", "text/plain", f"{error}\n".encode()
        style = metrics.negotiate(headers.get("accept", ""))
        return "200 OK", style.content_type, metrics.text(properties, stats, style).encode()


def _remove_stale(path: Path) -> None:
    """A socket that an earlier daemon left. Raises OSError for anything else in its place."""
    if path.is_socket():
        path.unlink()
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
