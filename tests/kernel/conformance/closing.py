"""Closing, half-closing and resetting."""

from __future__ import annotations

import os
import select
import signal
import socket

from kernel.conformance import observe
from kernel.conformance.catalogue import behaviour
from kernel.conformance.scene import (
    Scene,
    delivered,
    linger_0,
    send_all,
    unread,
    wait_events,
    wait_for,
)
from support.traffic import disconnect, pattern, read_exactly, read_to_end

MIB = 1 << 20
GONE = select.POLLHUP | select.POLLERR


def reset_by_far(t: Scene) -> None:
    """Returns when the near end knows."""
    linger_0(t.far)
    t.far.close()
    wait_events(t.near, GONE)


def note_reset(t: Scene, sock: socket.socket) -> None:
    """What a socket shows whose peer has reset the connection."""
    t.note("poll", observe.events(sock))
    t.call("recv", sock.recv, 100)
    t.call("recv again", sock.recv, 100)
    t.call("send", sock.send, b"x", socket.MSG_NOSIGNAL)
    t.call("send again", sock.send, b"x", socket.MSG_NOSIGNAL)
    t.note("SO_ERROR", observe.pending_error(sock))
    t.call("getpeername", sock.getpeername)


@behaviour()
def eof_after_data(t: Scene) -> None:
    """data sent before close() arrives, then the end of file, as often as asked"""
    t.near.sendall(pattern(0, MIB))
    t.near.close()
    t.note("data", observe.same(read_to_end(t.far), pattern(0, MIB)))
    t.call("recv", t.far.recv, 1)
    t.note("poll", observe.events(t.far))


@behaviour(redirects=False)
def eof_without_data(t: Scene) -> None:
    """close() of a connection with nothing unread"""
    t.near.close()
    wait_events(t.far, select.POLLRDHUP)
    t.note("poll", observe.events(t.far))
    t.call("recv", t.far.recv, 1)
    t.note("SO_ERROR", observe.pending_error(t.far))


@behaviour()
def half_close(t: Scene) -> None:
    """request, shutdown(SHUT_WR), then the answer and its end"""
    t.near.sendall(pattern(0, MIB // 2))
    t.near.shutdown(socket.SHUT_WR)
    answer = t.blocked(read_to_end, t.near)
    t.note("request", observe.same(read_to_end(t.far), pattern(0, MIB // 2)))
    t.far.sendall(pattern(0, MIB))
    t.far.shutdown(socket.SHUT_WR)
    t.note("answer", observe.same(answer.join(), pattern(0, MIB)))
    wait_events(t.near, select.POLLHUP)
    t.note("poll", observe.events(t.near))


@behaviour()
def half_close_after_unread_data(t: Scene) -> None:
    """shutdown(SHUT_WR) with data of the peer unread"""
    t.far.sendall(pattern(0, 1000))
    delivered(t.far)
    t.near.shutdown(socket.SHUT_WR)
    t.call("peer's recv", t.far.recv, 1)
    t.far.sendall(pattern(1000, 1000))
    t.far.close()
    t.note("data", observe.same(read_to_end(t.near), pattern(0, 2000)))


@behaviour()
def half_close_with_both_queues_full(t: Scene) -> None:
    """shutdown(SHUT_WR) at both ends with both directions unread"""
    for end in (t.near, t.far):
        end.sendall(pattern(0, 50_000))
    for end in (t.near, t.far):
        end.shutdown(socket.SHUT_WR)
    received = [read_to_end(end) for end in (t.near, t.far)]
    t.note("data", [observe.same(data, pattern(0, 50_000)) for data in received])


@behaviour()
def send_after_shutdown(t: Scene) -> None:
    """send() after shutdown(SHUT_WR): EPIPE, and SIGPIPE unless told not to"""
    caught: list[int] = []
    signal.signal(signal.SIGPIPE, lambda number, _frame: caught.append(number))
    t.near.sendall(b"before")
    t.near.shutdown(socket.SHUT_WR)
    t.call("MSG_NOSIGNAL", t.near.send, b"after", socket.MSG_NOSIGNAL)
    t.note("signals then", len(caught))
    t.call("send", t.near.send, b"after")
    t.note("signals", len(caught))
    t.note("peer", read_to_end(t.far))


@behaviour()
def nothing_sent_after_shutdown(t: Scene) -> None:
    """send() of nothing after shutdown(SHUT_WR) with data unread: EPIPE"""
    send_all(t.far, b"unread")
    t.near.shutdown(socket.SHUT_WR)
    t.call("send", t.near.send, b"", socket.MSG_NOSIGNAL)


@behaviour()
def fionread_of_a_half_closed_reader(t: Scene) -> None:
    """shutdown(SHUT_WR) with data unread: FIONREAD counts what comes later"""
    send_all(t.far, b"before")
    t.near.shutdown(socket.SHUT_WR)
    send_all(t.far, b"later")
    t.call("recv", t.near.recv, 6)
    wait_for(lambda: unread(t.near) > 0, "data that FIONREAD counts")
    t.note("FIONREAD", unread(t.near))


@behaviour()
def disconnect_of_a_half_closed_reader(t: Scene) -> None:
    """connect(AF_UNSPEC) of a half-closed socket leaves no unread data"""
    send_all(t.far, b"unread")
    t.near.shutdown(socket.SHUT_WR)
    t.call("disconnect", disconnect, t.near)
    t.note("FIONREAD", unread(t.near))
    t.note("poll", observe.events(t.near))


@behaviour()
def disconnect_after_a_reset(t: Scene) -> None:
    """connect(AF_UNSPEC) of a socket that was reset with data unread"""
    send_all(t.far, b"data")
    reset_by_far(t)
    t.call("disconnect", disconnect, t.near)
    t.note("poll", observe.events(t.near))


@behaviour()
def shutdown_of_reading(t: Scene) -> None:
    """shutdown(SHUT_RD): end of file where there is no data; what comes later is still read"""
    t.near.shutdown(socket.SHUT_RD)
    t.note("poll", observe.events(t.near))
    t.call("recv", t.near.recv, 100)
    send_all(t.near, b"other way")  # first, as the pair leaves with the next message to this end
    send_all(t.far, b"later")
    t.call("recv later data", t.near.recv, 100)
    t.call("and then", t.near.recv, 100)
    t.call("other way", t.far.recv, 100)


@behaviour()
def close_with_unread_data(t: Scene) -> None:
    """close() with data unread resets the connection"""
    send_all(t.near, b"unread")
    t.far.close()
    wait_events(t.near, select.POLLRDHUP)
    note_reset(t, t.near)


@behaviour()
def close_with_unread_data_both_ways(t: Scene) -> None:
    """close() with data unread, the peer having unread data, too"""
    send_all(t.near, b"unread")
    send_all(t.far, b"also unread")
    t.far.close()
    wait_events(t.near, select.POLLRDHUP)
    note_reset(t, t.near)


@behaviour()
def exit_with_unread_data(t: Scene) -> None:
    """death of a process with data unread resets the connection"""
    held = t.process(signal.pause)
    held.wait_blocked()
    t.far.close()
    send_all(t.near, b"unread")
    os.kill(held.pid, signal.SIGKILL)
    wait_events(t.near, select.POLLRDHUP)
    note_reset(t, t.near)


@behaviour(redirects=False)
def death_of_the_process(t: Scene) -> None:
    """a process that is killed with nothing unread leaves an end of file"""
    held = t.process(signal.pause)
    held.wait_blocked()
    t.far.close()
    os.kill(held.pid, signal.SIGKILL)
    wait_events(t.near, select.POLLRDHUP)
    t.call("recv", t.near.recv, 100)


@behaviour(redirects=False)
def linger_zero(t: Scene) -> None:
    """SO_LINGER 0: close() resets the connection"""
    reset_by_far(t)
    note_reset(t, t.near)


@behaviour()
def linger_zero_with_data_at_the_peer(t: Scene) -> None:
    """SO_LINGER 0 after data that the peer has not read: that is read before the error"""
    send_all(t.far, b"data")
    reset_by_far(t)
    note_reset(t, t.near)


@behaviour()
def linger_zero_with_unread_data(t: Scene) -> None:
    """SO_LINGER 0 with data of the peer unread"""
    send_all(t.near, b"unread")
    reset_by_far(t)
    note_reset(t, t.near)


@behaviour(redirects=False)
def reset_found_by_send(t: Scene) -> None:
    """send() finds the reset, and reports it once"""
    reset_by_far(t)
    note_sends(t)


@behaviour()
def reset_found_by_send_with_unread_data(t: Scene) -> None:
    """send() finds the reset, with data of the peer unread"""
    send_all(t.far, b"data")
    reset_by_far(t)
    note_sends(t)


def note_sends(t: Scene) -> None:
    t.call("send", t.near.send, b"x", socket.MSG_NOSIGNAL)
    t.note("poll", observe.events(t.near))
    t.call("send again", t.near.send, b"x", socket.MSG_NOSIGNAL)
    t.call("recv", t.near.recv, 100)
    t.call("recv again", t.near.recv, 100)


@behaviour(redirects=False)
def send_to_a_closed_peer(t: Scene) -> None:
    """the first send() after the peer's close() succeeds, the next finds the reset"""
    t.far.close()
    wait_events(t.near, select.POLLRDHUP)
    t.call("send", t.near.send, b"x", socket.MSG_NOSIGNAL)
    wait_events(t.near, GONE)
    t.note("poll", observe.events(t.near))
    t.call("send again", t.near.send, b"x", socket.MSG_NOSIGNAL)
    t.call("recv", t.near.recv, 100)
    t.call("and again", t.near.send, b"x", socket.MSG_NOSIGNAL)


@behaviour()
def data_towards_a_closing_peer(t: Scene) -> None:
    """data sent while the peer closes: its answer is read before the error"""
    send_all(t.far, b"answer")
    t.far.close()
    wait_events(t.near, select.POLLRDHUP)
    t.call("send", t.near.send, b"request", socket.MSG_NOSIGNAL)
    wait_events(t.near, GONE)
    t.call("recv", t.near.recv, 100)
    t.call("recv again", t.near.recv, 100)


@behaviour(redirects=False)
def blocked_reader_and_shutdown(t: Scene) -> None:
    """shutdown(SHUT_RDWR) by another thread wakes a reader"""
    reader = t.blocked(t.near.recv, 100)
    t.near.shutdown(socket.SHUT_RDWR)
    t.note("recv", reader.result())
    t.call("peer's recv", t.far.recv, 100)


@behaviour(redirects=False)
def blocked_reader_and_shutdown_of_reading(t: Scene) -> None:
    """shutdown(SHUT_RD) by another thread wakes a reader"""
    reader = t.blocked(t.near.recv, 100)
    t.near.shutdown(socket.SHUT_RD)
    t.note("recv", reader.result())


@behaviour(redirects=False)
def blocked_reader_and_peers_shutdown(t: Scene) -> None:
    """the peer's shutdown(SHUT_WR) wakes a reader"""
    reader = t.blocked(t.near.recv, 100)
    t.far.shutdown(socket.SHUT_WR)
    t.note("recv", reader.result())


@behaviour(redirects=False)
def blocked_reader_and_own_half_close(t: Scene) -> None:
    """shutdown(SHUT_WR) by another thread does not wake a reader"""
    reader = t.blocked(t.near.recv, 100)
    t.near.shutdown(socket.SHUT_WR)
    t.call("peer's recv", t.far.recv, 100)
    delivered(t.near)  # it is the acknowledgement of the FIN that wakes
    reader.wait_blocked_or_done()
    t.far.sendall(b"answer")
    t.note("recv", reader.result())


@behaviour(redirects=False)
def blocked_reader_and_reset(t: Scene) -> None:
    """a reset wakes a reader"""
    reader = t.blocked(t.near.recv, 100)
    linger_0(t.far)
    t.far.close()
    t.note("recv", reader.result())


@behaviour()
def blocked_reader_and_close(t: Scene) -> None:
    """close() by another thread does not wake a reader, who has what comes next"""
    reader = t.blocked(t.near.recv, 100)
    descriptor = t.near.detach()
    os.close(descriptor)
    t.call("peer's send", t.far.send, b"late")
    t.note("recv", reader.result())


@behaviour()
def blocked_sender_and_shutdown(t: Scene) -> None:
    """shutdown() by another thread wakes a sender that waits for room"""
    sender = t.blocked(t.near.sendall, pattern(0, 32 * MIB), socket.MSG_NOSIGNAL)
    t.near.shutdown(socket.SHUT_RDWR)
    t.note("send", sender.result())


@behaviour()
def blocked_sender_and_reset(t: Scene) -> None:
    """a reset wakes a sender that waits for room"""
    sender = t.blocked(t.near.sendall, pattern(0, 32 * MIB), socket.MSG_NOSIGNAL)
    linger_0(t.far)
    t.far.close()
    t.note("send", sender.result())
    t.call("send again", t.near.send, b"x", socket.MSG_NOSIGNAL)


@behaviour()
def blocked_sender_and_reader(t: Scene) -> None:
    """a sender that waits for room goes on when the peer reads"""
    sender = t.blocked(t.near.sendall, pattern(0, 32 * MIB))
    t.note("stream", observe.same(read_exactly(t.far, 32 * MIB), pattern(0, 32 * MIB)))
    t.note("send", sender.result())


@behaviour()
def unread_data_after_reset(t: Scene) -> None:
    """FIONREAD and poll with data left behind by a reset"""
    send_all(t.far, b"data")
    reset_by_far(t)
    t.note("FIONREAD", unread(t.near))
    t.note("poll", observe.events(t.near))


@behaviour()
def disorderly_exchange(t: Scene) -> None:
    """both ends close at once, each with the other's data read"""
    for end in (t.near, t.far):
        end.sendall(b"last words")
    for end in (t.near, t.far):
        read_exactly(end, 10)
    t.near.shutdown(socket.SHUT_WR)
    t.far.shutdown(socket.SHUT_WR)
    for end in (t.near, t.far):
        wait_for(lambda end=end: "HUP" in observe.events(end), "hang-up")  # type: ignore[misc]
    t.note("poll", [observe.events(end) for end in (t.near, t.far)])
    t.call("recv", t.near.recv, 100)
