"""The way programs do it."""

from __future__ import annotations

import asyncio
import ctypes
import http.client
import http.server
import select
import selectors
import socket
import ssl
import struct

from kernel.conformance import observe
from kernel.conformance.catalogue import behaviour, establishing
from kernel.conformance.scene import Scene, delivered, fill, send_all, unread, wait_events
from support.traffic import dial, listen, pattern, read_exactly, read_to_end

_libc = ctypes.CDLL(None, use_errno=True)
MESSAGES = 64
BEHIND = 5_000_000  # more than the window, and all of it delivered
STALLED_S = 10


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.POINTER(Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Mmsghdr(ctypes.Structure):
    _fields_ = (("header", Msghdr), ("length", ctypes.c_uint))


def message_vector(t: Scene, buffers: list[ctypes.Array[ctypes.c_char]]) -> ctypes.Array[Mmsghdr]:
    vector = (Mmsghdr * len(buffers))()
    for message, buffer in zip(vector, buffers, strict=True):
        iov = t.keep(Iovec(ctypes.addressof(buffer), ctypes.sizeof(buffer)))
        message.header.iov = ctypes.pointer(iov)
        message.header.iovlen = 1
    t.keep(buffers)
    return vector


@behaviour()
def sendmmsg(t: Scene) -> None:
    """sendmmsg(): several messages in one call"""
    buffers = [ctypes.create_string_buffer(pattern(i * 100, 100), 100) for i in range(MESSAGES)]
    vector = message_vector(t, buffers)
    t.note("sent", _libc.sendmmsg(t.near.fileno(), vector, MESSAGES, 0))
    data = read_exactly(t.far, MESSAGES * 100)
    t.note("stream", observe.same(data, pattern(0, MESSAGES * 100)))


@behaviour()
def recvmmsg(t: Scene) -> None:
    """recvmmsg(): several buffers in one call"""
    send_all(t.near, pattern(0, 1000))
    buffers = [ctypes.create_string_buffer(300) for _ in range(5)]
    vector = message_vector(t, buffers)
    flags = socket.MSG_DONTWAIT
    t.note("messages", _libc.recvmmsg(t.far.fileno(), vector, 5, flags, None))
    lengths = [message.length for message in vector]
    t.note("lengths", lengths)
    data = b"".join(b.raw[:n] for b, n in zip(buffers, lengths, strict=True))
    t.note("stream", observe.same(data, pattern(0, 1000)))


@behaviour()
def pipelined_requests(t: Scene) -> None:
    """requests sent ahead, answered in order (redis-cli --pipe, HTTP pipelining)"""
    for number in range(100):
        t.near.sendall(b"%04d" % number)
    answered = 0
    while answered < 100:
        for _ in range(0, len(requests := t.far.recv(64)), 4):
            t.far.sendall(b"%04d" % answered)
            answered += 1
        assert len(requests) % 4 == 0
    t.note(
        "answers",
        observe.same(read_exactly(t.near, 400), b"".join(b"%04d" % n for n in range(100))),
    )


@behaviour()
def lingering_close(t: Scene) -> None:
    """nginx's lingering close: shutdown(SHUT_WR), then read what still comes, then close()"""
    t.near.sendall(b"request")
    t.far.recv(100)
    t.far.sendall(b"answer")
    t.far.shutdown(socket.SHUT_WR)
    t.near.sendall(b"late request")
    t.call("late request", t.far.recv, 100)
    t.note("answer", read_to_end(t.near))
    t.near.close()
    t.call("end", t.far.recv, 100)


@behaviour()
def available(t: Scene) -> None:
    """Java's InputStream.available(): FIONREAD, then a read that must not block"""
    t.note("nothing", unread(t.far))
    t.near.sendall(b"data")
    wait_events(t.far, select.POLLIN)
    t.note("something", unread(t.far) > 0)
    t.call("read", t.far.recv, 100)


def _read_like_nginx(sock: socket.socket, size: int, buffer: int) -> tuple[bytes, str]:
    """ngx_unix_recv(): edge-triggered; FIONREAD after a full buffer tells whether there is more."""
    sock.setblocking(False)
    epoll = select.epoll()
    epoll.register(sock, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
    data = bytearray()
    while len(data) < size:
        if not epoll.poll(STALLED_S):
            return bytes(data), "no event, though not all was read"
        left = -1  # not known
        while left != 0 and len(data) < size:
            try:
                chunk = sock.recv(buffer)
            except BlockingIOError:
                break
            data += chunk
            if left > 0:
                left = max(left - len(chunk), 0)
            elif len(chunk) == buffer:
                left = unread(sock)
            else:
                break
    return bytes(data), "all read"


@behaviour()
def read_by_events_and_fionread(t: Scene) -> None:
    """edge-triggered reads that go on while FIONREAD is not 0 (nginx)"""
    t.near.sendall(pattern(0, 200_000))
    data, end = _read_like_nginx(t.far, 200_000, 4096)
    t.note("stream", observe.same(data, pattern(0, 200_000)[: len(data)]))
    t.note("end", end)


@behaviour()
def read_much_by_events_and_fionread(t: Scene) -> None:
    """edge-triggered reads that go on while FIONREAD is not 0, by a reader that was behind"""
    sent = fill(t.near, BEHIND)
    data, end = _read_like_nginx(t.far, sent, 4096)
    t.note("stream", observe.same(data, pattern(0, sent)[: len(data)]))
    t.note("end", end)


@behaviour()
def client_gone(t: Scene) -> None:
    """a server busy with a query polls for EPOLLRDHUP alone (PostgreSQL)"""
    t.near.sendall(b"SELECT pg_sleep(10)")
    read_exactly(t.far, 19)
    epoll = select.epoll()
    epoll.register(t.far, select.EPOLLRDHUP)
    t.note("there", len(epoll.poll(0)))
    t.near.close()
    t.note("gone", observe.mask(epoll.poll(20)[0][1] & ~select.EPOLLIN))


@behaviour()
def selector_loop(t: Scene) -> None:
    """a non-blocking loop with a buffer of its own (Java NIO, Netty, redis)"""
    size = 3 << 20
    selector = selectors.DefaultSelector()
    for end in (t.near, t.far):
        end.setblocking(False)
    selector.register(t.near, selectors.EVENT_WRITE)
    selector.register(t.far, selectors.EVENT_READ)
    sent, received = 0, bytearray()
    while len(received) < size:
        for key, _ in selector.select(20):
            if key.fileobj is t.far:
                received += t.far.recv(10_000)
            elif sent < size:
                sent += t.near.send(pattern(sent, min(100_000, size - sent)))
            else:
                selector.unregister(t.near)
    t.note("stream", observe.same(bytes(received), pattern(0, size)))


@behaviour()
def file_object(t: Scene) -> None:
    """stdio on a socket: lines"""
    with t.near.makefile("w") as writer, t.far.makefile("r") as reader:
        for number in range(10):
            print("line", number, file=writer, flush=number % 3 == 0)
        writer.flush()
        t.note("last", [reader.readline() for _ in range(10)][-1])


@establishing(accelerated=4)
def asyncio_echo(t: Scene) -> None:
    """an asyncio server and clients"""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(10_000):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def ask(port: int, number: int) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        data = pattern(number, 300_000)
        writer.write(data)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer == data

    async def main() -> int:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        return sum(await asyncio.gather(*(ask(port, number) for number in range(4))))

    t.note("right answers", asyncio.run(main()))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@establishing(accelerated=1)
def http_keepalive(t: Scene) -> None:
    """HTTP requests on one connection"""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    t.thread(server.serve_forever)
    client = http.client.HTTPConnection("127.0.0.1", server.server_port)
    right = 0
    for number in range(10):
        body = pattern(number, 20_000)
        client.request("POST", "/", body)
        right += client.getresponse().read() == body
    t.note("right answers", right)


@establishing(accelerated=1)
def openssl(t: Scene) -> None:
    """TLS by OpenSSL: handshake, data both ways, close_notify"""

    def context(purpose: int) -> ssl.SSLContext:
        made = ssl.SSLContext(purpose)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
        # anonymous key exchange, so that no certificate has to be made
        made.maximum_version = ssl.TLSVersion.TLSv1_2
        made.set_ciphers("aNULL:@SECLEVEL=0")
        return made

    with listen() as listener:

        def serve() -> bytes:
            server = context(ssl.PROTOCOL_TLS_SERVER).wrap_socket(
                listener.accept()[0], server_side=True
            )
            data = bytearray()
            while len(data) < 200_000:
                data += server.recv(65536)
            server.sendall(data)
            server.unwrap()
            return bytes(data)

        server = t.thread(serve)
        client = context(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(dial(listener))
        client.sendall(pattern(0, 200_000))
        answer = bytearray()
        while chunk := client.recv(65536):
            answer += chunk
        client.unwrap()
        t.note("request", observe.same(server.join(), pattern(0, 200_000)))
        t.note("answer", observe.same(bytes(answer), pattern(0, 200_000)))


@behaviour()
def drain_before_reset(t: Scene) -> None:
    """HAProxy's way out: SO_LINGER 0 and close() of a server connection with an answer in it"""
    t.near.sendall(b"request")
    read_exactly(t.far, 7)
    send_all(t.far, b"answer nobody wants")
    t.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    t.near.close()
    wait_events(t.far, select.POLLHUP)
    t.note("poll", observe.events(t.far))
    t.note("SO_ERROR", observe.pending_error(t.far))


@behaviour()
def small_writes(t: Scene) -> None:
    """a thousand messages of one byte"""
    for number in range(1000):
        t.near.send(pattern(number, 1))
    delivered(t.near)
    t.note("stream", observe.same(read_exactly(t.far, 1000), pattern(0, 1000)))
