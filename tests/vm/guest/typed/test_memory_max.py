"""Services with MemoryMax=: one that does not read is not killed for what others send to it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from exchanges import BEGINS_AFTER, connect
from serving import read_exactly
from shell import sh
from status import BUSCTL, counters

pytestmark = pytest.mark.usefixtures("nothing_learned")

LIMIT = 64 << 20  # bytes
CONNECTIONS, MESSAGE_BYTES, ROUNDS = 600, 4000, 500
PORT, UNIT = 8130, "sink.service"
# Reads a file, answers a few messages, by poll, and then leaves unread what comes.
SERVER = """
import select, socket, sys
port, answers = map(int, sys.argv[1:3])
with open(sys.argv[3], "rb") as file:
    while file.read(1 << 20):
        pass
listener = socket.create_server(("127.0.0.1", port), backlog=1000)
poll, left = select.epoll(), {}
poll.register(listener, select.EPOLLIN)
while True:
    for number, _ in poll.poll():
        if number == listener.fileno():
            connection, _ = listener.accept()
            poll.register(connection, select.EPOLLIN)
            left[connection.fileno()] = [connection, answers]
            continue
        connection, more = left[number]
        connection.sendall(connection.recv(100))
        left[number][1] = more - 1
        if more == 1:
            poll.unregister(connection)
"""
GREEDY = "held = bytearray(100 << 20); print(len(held))"


def number_in(file: str, name: str = "") -> int:
    """Of a file of the service's cgroup, or of one line in it."""
    text = Path(f"/sys/fs/cgroup/system.slice/{UNIT}/{file}").read_text()
    return int(dict(line.split() for line in text.splitlines())[name] if name else text)


@contextmanager
def service(answers: int, file: str = "/dev/null") -> Iterator[None]:
    properties = (f"--property=MemoryMax={LIMIT}", "--property=LimitNOFILE=4096")
    command = ["/usr/bin/python3", "-c", SERVER, str(PORT), str(answers), file]
    subprocess.run(
        ["systemd-run", f"--unit={UNIT}", "--collect", *properties, *command], check=True
    )
    try:
        yield
    finally:
        sh(f"systemctl stop {UNIT} || true")


def test_who_takes_more_is_killed() -> None:
    """Without which the other test shows nothing."""
    limit = f"--property=MemoryMax={LIMIT} --property=MemorySwapMax=0"
    result = sh(f"systemd-run --wait --pipe {limit} /usr/bin/python3 -c '{GREEDY}' 2>&1 || true")
    assert "oom-kill" in result


@pytest.mark.parametrize("accelerated", [False, True], ids=["TCP", "accelerated"])
def test_who_does_not_read_is_not_killed(accelerated: bool) -> None:
    if not accelerated:
        sh(BUSCTL.format("call", "Disable"))
    with service(BEGINS_AFTER), ExitStack() as stack:
        ends: list[socket.socket] = []
        for _ in range(CONNECTIONS):
            end = stack.enter_context(connect(PORT))
            for _ in range(BEGINS_AFTER):
                end.sendall(b"hello")
                assert read_exactly(end, 5) == b"hello"
            ends.append(end)
        before = counters()["redirected_messages"]
        for end in ends:
            end.setblocking(False)
        sent, message = 0, bytes(MESSAGE_BYTES)
        for _ in range(ROUNDS):
            once = 0
            for end in ends:
                with suppress(BlockingIOError):
                    once += end.send(message)
            if not once:
                break
            sent += once
        redirected = counters()["redirected_messages"] - before
        assert sent > LIMIT, "nobody pushes"
        # as much as its part of the limit lets in
        assert redirected > 100 if accelerated else redirected == 0
        assert sh(f"systemctl is-active {UNIT}") == "active\n"
        assert number_in("memory.events", "oom_kill") == 0


def test_page_cache_gives_way() -> None:
    """A service whose cgroup is full of it is accelerated."""
    file, messages = Path("/var/tmp/large"), 200
    file.write_bytes(bytes(LIMIT + (LIMIT >> 1)))
    try:
        sh("sync; echo 3 > /proc/sys/vm/drop_caches")  # so that the service is charged for it
        with service(BEGINS_AFTER + messages, str(file)), connect(PORT) as end:
            for number in range(BEGINS_AFTER + messages):
                if number == BEGINS_AFTER:
                    before = counters()["redirected_messages"]
                end.sendall(b"hello")
                assert read_exactly(end, 5) == b"hello"
            assert number_in("memory.current") > LIMIT - (LIMIT >> 5), "the cgroup is not full"
            assert counters()["redirected_messages"] - before > messages
    finally:
        file.unlink()
