"""Interrupted and shared waits."""

from __future__ import annotations

import os
import signal
import socket

from kernel.conformance import observe
from kernel.conformance.catalogue import behaviour
from kernel.conformance.scene import Scene
from support.traffic import pattern, read_exactly

MIB = 1 << 20


def _ignore(_number: int, _frame: object) -> None:
    pass


def _read_with_handler(sock: socket.socket, restart: bool) -> bytes:
    signal.signal(signal.SIGUSR1, _ignore)
    signal.siginterrupt(signal.SIGUSR1, not restart)
    return sock.recv(100)


@behaviour()
def signal_with_restart(t: Scene) -> None:
    """a signal with SA_RESTART while recv() blocks"""
    reader = t.process(_read_with_handler, t.near, True)
    reader.wait_blocked()
    os.kill(reader.pid, signal.SIGUSR1)
    reader.wait_signal()
    t.far.sendall(b"data")
    t.note("recv", reader.join())


@behaviour()
def signal_without_restart(t: Scene) -> None:
    """a signal without SA_RESTART while recv() blocks: EINTR (which Python retries)"""
    reader = t.process(_read_with_handler, t.near, False)
    reader.wait_blocked()
    os.kill(reader.pid, signal.SIGUSR1)
    reader.wait_signal()
    t.far.sendall(b"data")
    t.note("recv", reader.join())


@behaviour()
def stopped_and_continued(t: Scene) -> None:
    """SIGSTOP and SIGCONT (a shell's ^Z and fg, a debugger) while recv() blocks"""
    reader = t.process(t.near.recv, 100)
    reader.wait_blocked()
    reader.stop()
    reader.resume()
    reader.wait_signal()
    t.far.sendall(b"data")
    t.note("recv", reader.join())


@behaviour()
def stopped_with_data(t: Scene) -> None:
    """SIGSTOP, data, and SIGCONT while recv() blocks"""
    reader = t.process(t.near.recv, 100)
    reader.wait_blocked()
    reader.stop()
    t.far.sendall(b"data")
    reader.resume()
    t.note("recv", reader.join())


@behaviour()
def two_readers(t: Scene) -> None:
    """two threads block in recv(): each has one of two messages"""
    readers = [t.blocked(t.near.recv, 1) for _ in range(2)]
    t.far.sendall(b"x")  # wakes both
    for reader in readers:
        reader.wait_blocked_or_done()
    t.far.sendall(b"y")
    t.note("received", sorted(str(reader.result()) for reader in readers))


@behaviour()
def reader_beside_a_sender(t: Scene) -> None:
    """a thread blocks in recv() while another's send() waits for room"""
    reader = t.blocked(t.near.recv, 100)
    sender = t.blocked(t.near.sendall, pattern(0, 32 * MIB))
    t.note("stream", observe.same(read_exactly(t.far, 32 * MIB), pattern(0, 32 * MIB)))
    t.note("send", sender.result())
    reader.wait_blocked_or_done()
    t.far.sendall(b"data")
    t.note("recv", reader.result())


@behaviour()
def signal_to_a_sender(t: Scene) -> None:
    """a signal while send() waits for room"""

    def send() -> None:
        signal.signal(signal.SIGUSR1, _ignore)
        signal.siginterrupt(signal.SIGUSR1, False)
        t.near.sendall(pattern(0, 32 * MIB))

    sender = t.process(send)
    sender.wait_blocked()
    os.kill(sender.pid, signal.SIGUSR1)
    t.note("stream", observe.same(read_exactly(t.far, 32 * MIB), pattern(0, 32 * MIB)))
    t.note("send", sender.join())
