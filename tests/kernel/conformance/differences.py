"""What is known to differ, and why.

Strict: what differs and is not here fails, and vice versa; but a stable release newer than the one
that results/ was recorded on may have put something right.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from kernel.conformance import results
from kernel.conformance.catalogue import FRESH, JOINED, LEFT, SIDES, USED, Behaviour, Variant
from kernel.conformance.results import Kernel, Series, Version
from sockredird.datapath import detectors
from sockredird.datapath.generation import Generation

TCP_ULP = 31  # <linux/tcp.h>


def running(generation: Generation) -> Kernel:
    attached = generation.manifest["detectors"]
    return Kernel(
        results.running_version(),
        sees=bool(attached),
        ktls=_has_ktls(),
        counts=detectors.FIONREAD in attached,
        architecture=results.running_architecture(),
    )


def _has_ktls() -> bool:
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        except OSError as error:
            return error.errno != errno.ENOENT  # ENOTCONN: it is loaded by now
    return True


@dataclass(frozen=True)
class Reason:
    title: str
    cause: str
    guard: str
    by_default: bool = True  # not only with blocking_readers = "accelerate"


NOTICED = "Calls that are noticed"
HOW_NOTICED = (
    "Where the kernel has ftrace, some of the calls below are seen: the connection goes back to "
    "TCP, and the listener is learned, so that later connections to it stay on TCP. A program that "
    "makes such a call from the start, or soon after, gets what TCP gives: nothing is redirected "
    "to it before it has read 16 messages by an ordinary recv(), or another connection of its kind "
    "has shown that. What it gets later, with redirected data unread, is in the table. Without "
    "ftrace, leave such programs out with exclude_ports.\n\n"
    # Measured by tests/vm/guest/typed/test_random_moment.py, which prints these
    "What becomes of connections that begin at *a random moment* of a stream of 80 small messages "
    "was measured with 250 of each kind, in emulated guests with Linux 6.1, 6.12 and 7.3."
)
SEEN = "It is [noticed](#calls-that-are-noticed)."
REASONS = {
    "woken for nothing": Reason(
        "A blocking recv() that is woken for nothing",
        "`tcp_bpf_recvmsg()` waits once and returns EAGAIN if there is no data then, where "
        "`tcp_recvmsg()` goes back to wait, or looks for an error or the end.",
        "By default the connection of a reader that sleeps inside recv() is on TCP. With "
        'blocking_readers = "accelerate", and by default for the moment before it has left, what '
        "is below differs. Half-closing by the thread that reads next is dealt with (the socket "
        "leaves the sockhash inside shutdown()). Programs that poll before they read are not "
        f"affected. {SEEN}",
        by_default=False,
    ),
    "reset": Reason(
        "Close with unread data",
        "The kernel resets when `sk_receive_queue` has unread data; redirected data is not there, "
        "and is dropped before the queue is looked at (`sock_map_close()`).",
        "Nothing. No BPF program can turn the FIN into a RST: only the daemon could reset the "
        "connection, while close() spins for its answer. That needs a second processor, and is too "
        "late for some. The peer sees the end of the stream, and EPIPE at its second send().",
    ),
    "lost error": Reason(
        "The error of a send() cut short",
        "A send() that is reset while it waits for room returns what it had sent; on a sockhash "
        "member that consumes the pending ECONNRESET (`tcp_bpf_sendmsg()`), and the next finds "
        "EPIPE.",
        "Only a connection that has exceeded the window and whose reader has not caught up is "
        "concerned. Both errors say that the connection is gone.",
    ),
    "told twice": Reason(
        "A reset that send() finds",
        "`tcp_bpf_sendmsg()` returns the error without clearing it: the next send() or recv() "
        "returns it once more.",
        "A socket is taken off the sockhash when it is reset, unless there is data unread, which "
        "must not be lost, or the peer is about to send.",
    ),
    "nothing sent": Reason(
        "send() of nothing",
        "`tcp_bpf_sendmsg()` looks at the socket only if there is something to send.",
        "This concerns only a socket that shut down, or was reset, with data unread. A send() of "
        "something fails as it should.",
    ),
    "dead": Reason(
        "Disconnecting a connection that was reset",
        "`tcp_disconnect()` throws away what is unread in TCP's queue, not in the psock's, and "
        "no BPF program is called once the connection is dead.",
        "The data goes when the socket connects again, or listens.",
    ),
    "late": Reason(
        "SO_RCVLOWAT with data unread",
        "What is in the psock queue is readable, however little it is (`sk_msg_is_readable()`).",
        "The connection is plain TCP once that is read, and the listener is learned: later "
        "connections to it stay on TCP.",
    ),
    "splice": Reason(
        "splice() from the socket",
        "`tcp_splice_read()` does not know the psock queue: EAGAIN although there is data.",
        f"{SEEN} The connection is reset, within milliseconds. Until then its "
        "peer goes on to redirect, so that nothing overtakes what is unread. But splice() moves "
        "what had gone by TCP already, and returns 0 if the peer has finished. "
        "At a random moment, 51, 65 and 53 were cut short so, and 8, none and 6 were reset. In an "
        "earlier run on 6.12 one was out of order.",
    ),
    "flags": Reason(
        "recv() flags that the sockhash does not know",
        "`tcp_bpf_recvmsg()` has MSG_PEEK and MSG_DONTWAIT. MSG_WAITALL, MSG_TRUNC and MSG_OOB "
        "are not looked at, and it returns 0 at once for a buffer of no length.",
        f"{SEEN} At a random moment, 55, 57 and 56 had one short read with MSG_WAITALL; with "
        "MSG_TRUNC, 69, 60 and 61 had one that copied what it should have discarded.",
    ),
    "urgent": Reason(
        "Urgent data",
        "`tcp_bpf_sendmsg()` sends MSG_OOB in line, without a mark for the receiver.",
        "The ports of FTP, telnet, rlogin and rsh are excluded by default. "
        f"{SEEN} Of those that asked for urgent data where there was none, at a random moment, 3, "
        "4 and 2 were reset.",
    ),
    "no packets": Reason(
        "There are no packets",
        "TCP_INFO and TCP_ZEROCOPY_RECEIVE count bytes by packets and sequence numbers, and "
        "redirected data has neither.",
        "`sockredirctl list` shows what a connection carries.",
    ),
    "early": Reason(
        "Data held back",
        "TCP holds a partial segment back for TCP_CORK and MSG_MORE, for 200 ms at the most. "
        "Redirected data is there at once, which TCP allows, too.",
        "Nothing.",
    ),
    "io_uring zero copy": Reason(
        "SEND_ZC of io_uring",
        "The kernel takes SOCK_SUPPORT_ZC from a socket that goes on a sockhash, and, of one that "
        "was accepted, when it comes off (`sock_replace_proto()`): EOPNOTSUPP.",
        "Nothing; a program may fall back to SEND.",
    ),
    "not counted": Reason(
        "FIONREAD of redirected data",
        "Before 6.6.128, 6.12.75 and 6.18.14 a member of a sockhash answers FIONREAD as TCP does "
        "(`tcp_ioctl()`), from its receive queue, where redirected data is not.",
        "Where the kernel has ftrace, the call is seen: later connections to the listener stay on "
        "TCP, and this one is reset if the data is still unread a second later. With CAP_SYS_ADMIN "
        "the answer is put right instead (sockredird(8), FIONREAD).",
    ),
    "no kTLS": Reason(
        "Kernel TLS",
        "A sockhash takes no socket with a ULP, and a socket on one takes no ULP "
        "(`sk_psock_init()`, `tcp_set_ulp()`).",
        "setsockopt() fails as on a kernel without kTLS, so that the TLS library encrypts by "
        "itself. The listener is learned: the program gets kTLS on later connections.",
    ),
    "leaving": Reason(
        "FIONREAD at a border",
        "What exceeds the window goes through TCP, behind what was redirected before. On a "
        "sockhash member FIONREAD counts the one or the other: TCP's data before 6.12.75 and "
        "6.18.14, redirected data since. 6.12.117 and 7.3 count both.",
        "Once the redirected data is read, pollers are woken again for what is left. If that is "
        "still unread 100 ms later, the connection becomes plain TCP, so that none waits for ever.",
    ),
}


@dataclass(frozen=True)
class Difference:
    """`only`: variants, where not all of `states` differ.

    On kernels before `until`, and of earlier series before the releases in `backported`.
    `unseen`: only where fentry programs do not see it; `uncounted`: only where FIONREAD's answer is
    the kernel's own; `with_ktls`: only where the kernel has it.
    """

    reason: str
    states: tuple[str, ...] = (FRESH, USED, JOINED)
    only: frozenset[str] | None = None
    until: Series = (999, 0)
    backported: tuple[Version, ...] = ()
    unseen: bool = False
    uncounted: bool = False
    with_ktls: bool = False

    def applies(self, variant: Variant, kernel: Kernel) -> bool:
        if variant.state not in kernel.states:
            return False
        if kernel.series >= self.until or (self.unseen and kernel.sees):
            return False
        if self.uncounted and kernel.counts:
            return False
        if any(v[:2] == kernel.series and kernel.version >= v for v in self.backported):
            return False
        if self.with_ktls and not kernel.ktls:
            return False
        if self.only is not None:
            return str(variant) in self.only
        return variant.state in self.states


DIFFERENCES = {
    "empty_recv": Difference("flags"),
    "close_with_unread_data": Difference("reset"),
    "close_with_unread_data_both_ways": Difference("reset"),
    "exit_with_unread_data": Difference("reset"),
    "blocked_reader_and_shutdown": Difference("woken for nothing"),
    "blocked_reader_and_shutdown_of_reading": Difference("woken for nothing"),
    "blocked_reader_and_own_half_close": Difference("woken for nothing"),
    "blocked_reader_and_reset": Difference("woken for nothing"),
    "signal_with_restart": Difference("woken for nothing"),
    "signal_without_restart": Difference("woken for nothing"),
    "stopped_and_continued": Difference("woken for nothing"),
    "stopped_with_data": Difference("woken for nothing"),
    "two_readers": Difference("woken for nothing"),
    "reader_beside_a_sender": Difference("woken for nothing"),
    "blocked_sender_and_reset": Difference("lost error"),
    "reset_found_by_send_with_unread_data": Difference("told twice"),
    "nothing_sent_after_shutdown": Difference("nothing sent"),
    "disconnect_after_a_reset": Difference("dead"),
    "low_water_mark_set_late": Difference("late"),
    **dict.fromkeys(
        (
            "fionread",
            "fionread_at_the_end",
            "fionread_then_read",
            "fionread_and_poll",
            "unread_data_after_reset",
            "available",
            "read_by_events_and_fionread",
            "read_much_by_events_and_fionread",
        ),
        Difference("not counted", until=(6, 6), uncounted=True),
    ),
    "upper_layer_protocol": Difference("no kTLS", with_ktls=True),
    "fionread_while_leaving": Difference(
        "leaving", until=(7, 3), backported=((6, 12, 117),), uncounted=True
    ),
    "truncate": Difference("flags"),
    "wait_all": Difference("flags"),
    "out_of_band": Difference("urgent"),
    "tcp_info_bytes": Difference("no packets"),
    "zerocopy_receive": Difference("no packets"),
    "corked": Difference("early"),
    "more_to_come": Difference("early"),
    "splice_out": Difference("splice"),
    "splice_out_blocking": Difference(
        "splice",
        unseen=True,
        only=frozenset({f"{state} {side}" for state in (USED, JOINED) for side in SIDES}),
    ),
    "copying_proxy": Difference("splice"),
    "uring_splice": Difference("splice"),
    "uring_send_zerocopy": Difference(
        "io_uring zero copy",
        only=frozenset(
            {"fresh client", "used client"}
            | {f"{state} {side}" for state in (LEFT, JOINED) for side in SIDES}
        ),
    ),
}


def expected(behaviour: Behaviour, kernel: Kernel) -> set[str]:
    """The variants that are to differ on a kernel."""
    known = DIFFERENCES.get(behaviour.name)
    return {str(v) for v in behaviour.variants if known and known.applies(v, kernel)}


def agrees(differing: set[str], known: set[str], kernel: Kernel) -> bool:
    """Whether a kernel differs where it is known to."""
    return differing == known or (results.is_newer(kernel) and differing < known)
