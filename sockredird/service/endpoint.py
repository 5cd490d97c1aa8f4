"""The scrape endpoint: GET /metrics on a unix socket or a loopback port. Off unless configured.

Serves what `sockredirctl stats --format` prints, in the format the scraper asks for. Whoever can
reach the address may ask, so there are few connections at a time, and each ends soon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sockredird import config
from sockredird.errors import SockredirError, printable

log = logging.getLogger(__name__)

REQUEST_LIMIT = 8192  # bytes
CONNECTIONS = 16  # at a time
TIMEOUT_S = 5.0  # to send a request, and as much again to take the answer
_UNREAD_LIMIT = 1 << 20  # bytes of a refused request that are read before the connection is closed

# properties and counters, as the bus object has them
Read = Callable[[], Awaitable[tuple[dict[str, Any], dict[str, int]]]]
_Answer = tuple[str, str, bytes]  # status, content type, body


class Endpoint:
    def __init__(self, read: Read) -> None:
        self._read = read
        self._listen = ""
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def use(self, listen: str) -> None:
        """Listens on another address, or nowhere. A failure is logged, and the daemon goes on."""
        if listen == self._listen:
            return
        self.close()
        self._listen = listen
        address = config.listen_address(listen)
        try:
            if isinstance(address, Path):
                await asyncio.to_thread(_remove_stale, address)
                self._server = await asyncio.start_unix_server(
                    self._serve, address, limit=REQUEST_LIMIT
                )
            elif address is not None:
                host, port = address
                self._server = await asyncio.start_server(
                    self._serve, host, port, limit=REQUEST_LIMIT
                )
        except OSError as error:
            self._listen = ""
            log.error("no metrics: cannot listen on %s ([metrics] listen): %s", listen, error)
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
        self._connections += 1
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                if self._connections > CONNECTIONS:
                    answer = _plain("503 Service Unavailable", "too many connections")
                else:
                    answer = await self._answer(reader)
                writer.write(_response(*answer))
                await writer.drain()
                writer.write_eof()
                # to close a socket with unread data sends RST, which may destroy the answer
                for _ in range(_UNREAD_LIMIT // REQUEST_LIMIT):
                    if not await reader.read(REQUEST_LIMIT):
                        break
        except (OSError, TimeoutError) as error:
            log.debug("on the metrics endpoint: %r", error)
        except Exception as error:
            log.error("on the metrics endpoint: %r", error)
        finally:
            self._connections -= 1
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader) -> _Answer:
        """Raises OSError."""
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT_S)
        except asyncio.LimitOverrunError:
            limit = f"at most {REQUEST_LIMIT} bytes of request are read"
            return _plain("431 Request Header Fields Too Large", limit)
        except asyncio.IncompleteReadError:
            return _plain("400 Bad Request", "the request is not complete")
        except TimeoutError:
            return _plain("408 Request Timeout", f"no request within {TIMEOUT_S:g} s")
        line, *rest = head.decode("latin-1").split("\r\n")
        match line.split(" "):
            case ["GET", "/metrics", version] if version.startswith("HTTP/1."):
                pass
            case ["GET", _, version] if version.startswith("HTTP/1."):
                return _plain("404 Not Found", "see /metrics")
            case [_, _, version] if version.startswith("HTTP/1."):
                return _plain("405 Method Not Allowed", "GET only")
            case _:
                return _plain("400 Bad Request", "not HTTP/1.1")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (header.partition(":") for header in rest)
        }
        return await self._metrics(headers.get("accept", ""))

    async def _metrics(self, accept: str) -> _Answer:
        # The client package owns the names of the metrics. It is imported here, as few need it.
        from sockredirctl import metrics

        try:
            properties, stats = await self._read()
        except SockredirError as error:
            return _plain("503 Service Unavailable", printable(str(error)))
        style = metrics.negotiate(accept)
        return "200 OK", style.content_type, metrics.text(properties, stats, style).encode()


def _plain(status: str, text: str) -> _Answer:
    return status, "text/plain; charset=utf-8", f"{text}\n".encode()


def _response(status: str, kind: str, body: bytes) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    if status.startswith("405"):
        lines.append("Allow: GET")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def _remove_stale(path: Path) -> None:
    """Removes a socket that an earlier daemon left, and makes its directory. Raises OSError."""
    if path.is_socket():
        path.unlink()
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
