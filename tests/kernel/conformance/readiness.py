"""Readiness: poll, select, epoll and SIGIO."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket

from kernel.conformance import observe
from kernel.conformance.catalogue import behaviour
from kernel.conformance.scene import Scene, delivered, fill, linger_0, send_all, unread, wait_events
from support.traffic import pattern, read_exactly

ALL = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI
EDGE = select.EPOLLET
LATEST_S = 20.0


def watch(sock: socket.socket, bits: int) -> select.epoll:
    epoll = select.epoll()
    epoll.register(sock, bits)
    return epoll


def report(epoll: select.epoll, timeout: float = 0) -> str:
    found = epoll.poll(timeout)
    return observe.mask(found[0][1]) if found else "none"


@behaviour()
def poll_masks(t: Scene) -> None:
    """poll(): idle, readable, peer half-closed, both half-closed"""
    t.note("idle", observe.events(t.near))
    send_all(t.far, b"data")
    t.note("readable", observe.events(t.near))
    t.near.recv(2)
    t.note("partly read", observe.events(t.near))
    t.near.recv(100)
    t.note("all read", observe.events(t.near))
    t.far.shutdown(socket.SHUT_WR)
    wait_events(t.near, select.POLLRDHUP)
    t.note("peer half-closed", observe.events(t.near))
    t.near.shutdown(socket.SHUT_WR)
    wait_events(t.near, select.POLLHUP)
    t.note("both half-closed", observe.events(t.near))


@behaviour(redirects=False)
def poll_after_reset(t: Scene) -> None:
    """poll() and SO_ERROR after a reset"""
    linger_0(t.far)
    t.far.close()
    wait_events(t.near, select.POLLHUP)
    t.note("poll", observe.events(t.near))
    t.note("SO_ERROR", observe.pending_error(t.near))
    t.note("poll again", observe.events(t.near))


@behaviour()
def select_sets(t: Scene) -> None:
    """select(): readable and writable"""

    def sets() -> list[int]:
        return [len(found) for found in select.select([t.near], [t.near], [t.near], 0)]

    t.note("idle", sets())
    send_all(t.far, b"data")
    t.note("readable", sets())
    t.near.recv(100)
    t.note("read", sets())
    t.far.close()
    wait_events(t.near, select.POLLRDHUP)
    t.note("peer closed", sets())


@behaviour()
def blocked_poll(t: Scene) -> None:
    """data wakes a process asleep in poll()"""
    poll = select.poll()
    poll.register(t.near, select.POLLIN)
    waiter = t.blocked(lambda: observe.mask(poll.poll()[0][1]))
    t.far.sendall(b"data")
    t.note("poll", waiter.result())
    t.call("recv", t.near.recv, 100)


@behaviour()
def blocked_select(t: Scene) -> None:
    """data wakes a process asleep in select()"""
    waiter = t.blocked(lambda: len(select.select([t.near], [], [])[0]))
    t.far.sendall(b"data")
    t.note("select", waiter.result())
    t.call("recv", t.near.recv, 100)


@behaviour()
def blocked_epoll(t: Scene) -> None:
    """data wakes a process asleep in epoll_wait()"""
    epoll = watch(t.near, select.EPOLLIN)
    waiter = t.blocked(lambda: observe.mask(epoll.poll()[0][1]))
    t.far.sendall(b"data")
    t.note("epoll_wait", waiter.result())
    t.call("recv", t.near.recv, 100)


@behaviour(redirects=False)
def blocked_epoll_and_close(t: Scene) -> None:
    """the peer's close() wakes a process asleep in epoll_wait()"""
    epoll = watch(t.near, select.EPOLLIN | select.EPOLLRDHUP)
    waiter = t.blocked(lambda: epoll.poll() and "awake")
    t.far.close()
    t.note("epoll_wait", waiter.result())


@behaviour()
def level_triggered(t: Scene) -> None:
    """level-triggered epoll: as long as there is data"""
    epoll = watch(t.near, ALL)
    t.note("idle", report(epoll))
    send_all(t.far, b"data")
    t.note("readable", report(epoll))
    t.note("still", report(epoll))
    t.near.recv(2)
    t.note("partly read", report(epoll))
    t.near.recv(100)
    t.note("all read", report(epoll))


@behaviour()
def edge_triggered(t: Scene) -> None:
    """edge-triggered epoll: once for each arrival, read or not"""
    epoll = watch(t.near, select.EPOLLIN | EDGE)
    t.note("idle", report(epoll))
    send_all(t.far, b"data")
    t.note("data", report(epoll))
    t.note("no news", report(epoll))
    t.near.recv(2)
    t.note("partly read", report(epoll))
    send_all(t.far, b"more")
    t.note("more", report(epoll))
    t.call("recv", t.near.recv, 100)
    send_all(t.far, b"again")
    t.note("again", report(epoll))


@behaviour()
def edge_triggered_late(t: Scene) -> None:
    """edge-triggered epoll on a socket that has data in it already"""
    send_all(t.far, b"data")
    epoll = watch(t.near, select.EPOLLIN | EDGE)
    t.note("registered", report(epoll))
    t.note("no news", report(epoll))
    epoll.modify(t.near, select.EPOLLIN | EDGE)
    t.note("modified", report(epoll))


@behaviour()
def go_net_poller(t: Scene) -> None:
    """Go's poller: one edge-triggered registration for both ways, read() until EAGAIN"""
    for end in (t.near, t.far):
        end.setblocking(False)
    epoll = watch(t.far, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | EDGE)
    received = bytearray()
    for number in range(50):
        t.near.send(pattern(number * 100, 100))
        while len(received) < (number + 1) * 100:
            try:
                received += t.far.recv(4096)
            except BlockingIOError:
                if not epoll.poll(LATEST_S):
                    t.note("no event after message", number)
                    return
    t.note("stream", observe.same(bytes(received), pattern(0, 5000)))
    t.near.close()
    while not (found := epoll.poll(LATEST_S)) or not found[0][1] & select.EPOLLRDHUP:
        assert found, "no EPOLLRDHUP"
    t.call("recv", t.far.recv, 1)


@behaviour()
def one_shot(t: Scene) -> None:
    """EPOLLONESHOT"""
    epoll = watch(t.near, select.EPOLLIN | select.EPOLLONESHOT)
    send_all(t.far, b"data")
    t.note("data", report(epoll))
    send_all(t.far, b"more")
    t.note("disarmed", report(epoll))
    epoll.modify(t.near, select.EPOLLIN | select.EPOLLONESHOT)
    t.note("armed again", report(epoll))


@behaviour()
def writable_again(t: Scene) -> None:
    """EPOLLOUT goes when there is no room and comes back when the peer reads"""
    level = watch(t.near, select.EPOLLOUT)
    t.note("at first", report(level))
    sent = fill(t.near)
    t.note("full", report(level))
    edge = watch(t.near, select.EPOLLOUT | EDGE)
    t.note("stream", observe.same(read_exactly(t.far, sent), pattern(0, sent)))
    t.note("level-triggered", report(level, LATEST_S))
    t.note("edge-triggered", report(edge, LATEST_S))
    t.call("send", t.near.send, b"x", socket.MSG_DONTWAIT)


@behaviour()
def always_writable(t: Scene) -> None:
    """EPOLLOUT stays while little is unread"""
    epoll = watch(t.near, select.EPOLLOUT)
    for _ in range(10):
        t.near.sendall(b"x" * 1000)
    delivered(t.near)
    t.note("epoll", report(epoll))


@behaviour()
def peer_half_closed(t: Scene) -> None:
    """EPOLLRDHUP, with data before it unread"""
    epoll = watch(t.near, ALL)
    edge = watch(t.near, ALL | EDGE)
    report(edge)
    send_all(t.far, b"data")
    report(edge)
    t.far.shutdown(socket.SHUT_WR)
    wait_events(t.near, select.POLLRDHUP)
    t.note("level-triggered", report(epoll))
    t.note("edge-triggered", report(edge))
    t.call("recv", t.near.recv, 100)
    t.note("read", report(epoll))
    t.call("recv again", t.near.recv, 100)


@behaviour()
def peer_closed(t: Scene) -> None:
    """what edge-triggered epoll says of a peer that has sent its last and closed"""
    edge = watch(t.near, ALL | EDGE)
    report(edge)
    t.far.sendall(b"data")
    t.far.close()
    wait_events(t.near, select.POLLRDHUP)
    t.note("epoll", report(edge))
    t.call("recv", t.near.recv, 100)
    t.call("recv again", t.near.recv, 100)


@behaviour()
def several_watchers(t: Scene) -> None:
    """two epoll instances and a poll() on the same socket"""
    first, second = watch(t.near, select.EPOLLIN), watch(t.near, select.EPOLLIN | EDGE)
    send_all(t.far, b"data")
    t.note("first", report(first))
    t.note("second", report(second))
    t.note("poll", observe.events(t.near))
    nested = select.epoll()
    nested.register(first, select.EPOLLIN)
    t.note("epoll of epoll", report(nested))


@behaviour()
def signal_io(t: Scene) -> None:
    """O_ASYNC: SIGIO when data arrives"""
    caught: list[int] = []
    signal.signal(signal.SIGIO, lambda number, _frame: caught.append(number))
    fcntl.fcntl(t.near, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(t.near, fcntl.F_GETFL)
    fcntl.fcntl(t.near, fcntl.F_SETFL, flags | os.O_ASYNC)
    send_all(t.far, b"data")
    t.note("SIGIO", bool(caught))
    t.call("recv", t.near.recv, 100, socket.MSG_DONTWAIT)


@behaviour()
def fionread_and_poll(t: Scene) -> None:
    """what is readable by poll() is not 0 by FIONREAD"""
    for number in range(20):
        t.far.sendall(pattern(number * 100, 100))
        wait_events(t.near, select.POLLIN)
        found = unread(t.near)
        if not found:
            t.note("FIONREAD", 0)
            return
        read_exactly(t.near, 100)
    t.note("FIONREAD", "as readable")
