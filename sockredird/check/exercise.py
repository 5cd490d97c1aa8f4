"""Small exercises with sockets, which show how the kernel behaves.

`python3 -m sockredird.check.exercise CGROUP PARENT` runs as a child process in a private cgroup. It
reads orders from standard input, one JSON object each, and answers each with one. It looks at its
sockets only, as any program does, so it serves for any datapath.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from sockredird.check import kernel_facts, measure
from sockredird.check.tcp_pair import (
    NotTried,
    Pair,
    connect,
    early_client,
    fionread,
    listen,
    message,
    new_pair,
    read,
    readable,
    reserve,
    sent_by_tcp,
    splice,
)
from sockredird.kernel import child

IPPROTO_MPTCP = 262
TCP_ULP = 31
_ULPS = Path("/proc/sys/net/ipv4/tcp_available_ulp")

FLOOD_MESSAGE = 16384
FLOOD_CAP = 8 << 20  # TCP takes far less, with buffers of FLOOD_BUFFER
FLOOD_BUFFER = 128 << 10
BYTES_CAP = 6000
UNREAD = {"client": 64, "server": 16}  # messages of 1 KiB
TAIL = 1000

Answer = dict[str, Any]


def exchange(pair: Pair, sizes: tuple[int, ...] = (1, 64, 10_000)) -> bool:
    """Sends messages both ways. Returns whether they arrive as they were sent."""
    for number, size in enumerate(sizes):
        for _, sender, receiver in pair.ends():
            data = message(number + 1, size)
            sender.sendall(data)
            if read(receiver, size) != data:
                return False
    return True


def _by_tcp(pair: Pair) -> dict[str, int]:
    return {name: sent_by_tcp(sender) for name, sender, _ in pair.ends()}


class Exercises:
    """Each public method carries out an order. The attributes are what one keeps for the next."""

    def __init__(self) -> None:
        self._holder = reserve()
        self._port: int = self._holder.getsockname()[1]
        self._other: socket.socket | None = None
        self._open: Pair | None = None
        self._unloading: Pair | None = None

    def reserve(self) -> Answer:
        """The port on which all servers here listen, one after the other."""
        return {"port": self._port}

    def send_both_ways(self, ipv6: bool) -> Answer:
        """Sends some messages each way over a connection, and keeps it open unless it is IPv6."""
        try:
            pair = new_pair(self._port, socket.AF_INET6 if ipv6 else socket.AF_INET)
        except (OSError, NotTried):
            if ipv6:
                return {"missing": True}  # IPv6 is switched off
            raise
        if not ipv6:
            self._open = pair
        correct = exchange(pair)
        answer = {"correct": correct, "tcp_bytes": sum(_by_tcp(pair).values())}
        if ipv6:
            pair.close()
        return answer

    def inspect(self) -> Answer:
        """Tries FIONREAD and splice(2) on a redirected message."""
        pair = self._kept(self._open)
        data = message(7, TAIL)
        pair.client.sendall(data)
        if not readable(pair.server):
            return {"correct": False}
        waiting = fionread(pair.server)
        spliced = splice(pair.server, TAIL)
        rest = read(pair.server, TAIL - max(spliced, 0))
        return {
            "correct": rest == data[max(spliced, 0) :],
            "fionread": waiting,
            "spliced": spliced,
            "size": TAIL,
        }

    def close(self) -> Answer:
        self._kept(self._open).close()
        return {}

    def defer(self) -> Answer:
        """Sends data before the server end exists, and more afterwards (TCP_DEFER_ACCEPT)."""
        correct = 0
        for _ in range(3):
            with closing(listen(self._port)) as listener:
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
                listener.listen()
                with early_client(listener, message(1, 100)) as pair:
                    pair.client.sendall(message(2, 100))
                    wanted = message(1, 100) + message(2, 100)
                    correct += read(pair.server, 200) == wanted and exchange(pair)
        return {"tries": 3, "correct": correct}

    def flood(self) -> Answer:
        """Sends to a reader that does not read, until the socket takes no more."""
        with closing(listen(self._port)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, FLOOD_BUFFER)
            listener.listen()
            with closing(connect(listener)) as pair:
                pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, FLOOD_BUFFER)
                pair.client.setblocking(False)
                accepted = fill(pair.client)
                count = accepted // FLOOD_MESSAGE + 1
                wanted = b"".join(message(i, FLOOD_MESSAGE) for i in range(count))[:accepted]
                return {
                    "accepted": accepted,
                    "bounded": accepted < FLOOD_CAP,
                    "correct": read(pair.server, accepted) == wanted,
                }

    def flood_with_bytes(self) -> Answer:
        """Sends single bytes to a reader that does not read, until one goes by TCP."""
        with closing(new_pair(self._port)) as pair:
            count = 0
            while count < BYTES_CAP and not sent_by_tcp(pair.client):
                for _ in range(100):
                    pair.client.send(bytes([count & 0xFF]))
                    count += 1
            wanted = bytes(i & 0xFF for i in range(count))
            return {
                "messages": count,
                "bounded": bool(sent_by_tcp(pair.client)),
                "correct": read(pair.server, count) == wanted,
            }

    def mptcp(self) -> Answer:
        try:
            pair = new_pair(self._port, protocol=IPPROTO_MPTCP)
        except (OSError, NotTried):
            return {"missing": True}  # the kernel has no MPTCP, or net.mptcp.enabled is 0
        with closing(pair):
            correct = exchange(pair)
            try:
                return {"correct": correct, "redirected": not all(_by_tcp(pair).values())}
            except OSError:  # such sockets have no TCP_INFO, so only the bytes count
                return {"correct": correct, "redirected": False}

    def ktls(self) -> Answer:
        """Asks for kTLS on an established connection."""
        # to ask for a ULP that is not there would load its module
        if "tls" not in _ULPS.read_text().split():
            return {"missing": True}
        with closing(new_pair(self._port)) as pair:
            before = exchange(pair)
            try:
                pair.client.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
                refused = ""
            except OSError as error:
                refused = error.strerror or str(error)
            return {"refused": refused, "correct": before and exchange(pair)}

    def leave_unread(self) -> Answer:
        """Opens a connection with unread data both ways."""
        pair = self._unloading = new_pair(self._port)
        for name, sender, _ in pair.ends():
            for number in range(UNREAD[name]):
                sender.sendall(message(number, 1024))
        return {"tcp_bytes": sum(_by_tcp(pair).values())}

    def read_unread(self) -> Answer:
        """Reads that data, and data sent later, which TCP carries; tries FIONREAD on the latter."""
        pair = self._kept(self._unloading)
        correct, waiting = True, 0
        for name, sender, receiver in pair.ends():
            sender.sendall(message(99, TAIL))
            wanted = b"".join(message(n, 1024) for n in range(UNREAD[name]))
            correct = correct and read(receiver, len(wanted)) == wanted
            if correct and readable(receiver):
                waiting = fionread(receiver)
            correct = correct and read(receiver, TAIL) == message(99, TAIL)
            if not correct:
                break
        return {"correct": correct, "fionread": waiting, "size": TAIL}

    def after_unload(self) -> Answer:
        """Whether the connection is plain TCP: FIONREAD and splice(2) work as they do there."""
        pair = self._kept(self._unloading)
        with closing(pair):
            correct = exchange(pair)
            pair.client.sendall(message(5, TAIL))
            native = readable(pair.server) and fionread(pair.server) == TAIL
            return {"correct": correct, "native": native and splice(pair.server, TAIL) == TAIL}

    def ports(self, wanted: int) -> Answer:
        """Two ports for round_trips() and stream(): `wanted`, or any if that is 0, and another."""
        self._other = reserve()
        plain = self._other.getsockname()[1]
        if wanted:
            listen(wanted).close()  # raises the error that round_trips() would meet
        return {"accelerated": wanted or self._port, "plain": plain}

    def round_trips(self, **load: Any) -> Answer:
        return measure.round_trips(**load)

    def stream(self, **load: Any) -> Answer:
        return measure.stream(**load)

    def kernel(self) -> Answer:
        """What the kernel offers, as far as no socket is needed to see it."""
        return kernel_facts.gather()

    def _kept(self, pair: Pair | None) -> Pair:
        if pair is None:
            raise NotTried("the exercise before it failed")
        return pair


def fill(sock: socket.socket) -> int:
    """How many bytes a non-blocking socket takes before EAGAIN, up to about FLOOD_CAP."""
    accepted = 0
    while accepted < FLOOD_CAP:
        number, offset = divmod(accepted, FLOOD_MESSAGE)
        try:
            accepted += sock.send(message(number, FLOOD_MESSAGE)[offset:])
        except BlockingIOError:
            break
    return accepted


def main() -> int:
    child.die_with(int(sys.argv[2]))
    if sys.argv[1]:
        Path(sys.argv[1], "cgroup.procs").write_text("0")
    exercises = Exercises()
    for line in sys.stdin:
        order = json.loads(line)
        method: Callable[..., Answer] = getattr(exercises, order.pop("order"))
        try:
            answer = method(**order)
        except NotTried as error:
            answer = {"not_tried": str(error)}
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "")
            answer = {"correct": False, "error": f"{name} {error.strerror or error}".strip()}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
