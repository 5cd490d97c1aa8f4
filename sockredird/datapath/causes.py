"""What each cause means, in the words of explain, learned, the log and the manual.

bpf/causes.h has the causes themselves. A cause for which a listener can be learned for good names
what a program did, so its sentence begins with who that was.
"""

from __future__ import annotations

from sockredird.loader.records import LEARNED_FOR_GOOD

SENTENCES = {
    "peer_outside": "the other end is not in scope: another host, cgroup, or network namespace",
    "undecidable": "both ends are in scope, but SNAT or masquerading hides the client's address "
    "from the listener, so that the ends did not recognise each other in time",
    "early_data": "data went by TCP before both ends were paired (TCP_DEFER_ACCEPT, "
    "TCP Fast Open, or a race)",
    "ulp": "asked for an upper layer protocol (kTLS by TCP_ULP, or SMC)",
    "mptcp": "it is a Multipath TCP subflow",
    "zerocopy": "set SO_ZEROCOPY, whose completions a sockhash does not deliver",
    "repair": "set TCP_REPAIR, so that the sequence numbers are not those of a handshake",
    "rcvlowat": "set SO_RCVLOWAT, which a sockhash ignores",
    "oobinline": "set SO_OOBINLINE: it expects urgent data, which a sockhash does not support",
    "option": "set an option that a sockhash ignores: SO_TIMESTAMP, SO_TIMESTAMPING, SO_PEEK_OFF, "
    "TCP_INQ, SO_LINGER with a time, TCP_USER_TIMEOUT, SO_MAX_PACING_RATE, SO_TXTIME, TCP_TX_DELAY "
    "or a socket filter",
    "learned": "its listener is left on TCP, see sockredirctl learned",
    "kernel_socket": "a socket belongs to the kernel itself",
    "mismatch": "its sequence numbers are those of another connection",
    "map_full": "as many connections were accelerated as max_connections allows",
    "other_sockmap": "another BPF program has the socket on a sockmap of its own "
    "(bpftool prog show: sk_msg, sk_skb)",
    "no_memory": "there was no memory for the state of a socket",
    "window": "unread data reached window_bytes, or what the reader's buffers allow",
    "messages": "too many messages were unread, however small",
    "memory": "unread data of all connections reached memory_bytes, or the share of a cgroup",
    "pressure": "memory is short: tcp_mem, or the memory limit of a cgroup of either end",
    "peer_busy": "a call at the other end held its socket for long, as it waited for memory pages",
    "revalidation": "a message went by TCP, so that firewalls and conntrack see the connection",
    "blocking_reader": "sleeps inside recv(), which a signal or a pause would end with "
    'EAGAIN (blocking_readers = "tcp"); many clients poll instead if a timeout is set',
    "half_closed": "one end has shut down its side or closed, and the other has used TCP since",
    "peer_gone": "its peer was taken off the sockhash by another program",
    "splice": "used splice(2) from the socket",
    "waitall": "received with MSG_WAITALL",
    "trunc": "received with MSG_TRUNC",
    "oob": "used MSG_OOB",
    "woken": "had a blocking recv(2) woken without data, by a signal or another thread",
    "fionread": "used FIONREAD, which does not count redirected data on this kernel",
    "short_connections": "its connections end after so few messages that pairing costs more "
    "than it saves",
    "never_quiet": "it was joined, but its reader never caught up with what TCP had carried",
    "tcp_unread": "what came by TCP was not read within 100 ms; FIONREAD does not tell of it on "
    "this kernel, so the program may have been waiting for that",
    "idle": "it carried nothing for a while, and the table of connections was nearly full",
    "tcp_calls": "its program uses splice(2), MSG_WAITALL, MSG_TRUNC or MSG_OOB on each "
    "connection, which only TCP serves, so that pairing costs more than it saves",
    "disable": "acceleration is disabled, or was disabled during this connection",
}
# Their sentences have the program as the subject.
_OF_A_PROGRAM = {*LEARNED_FOR_GOOD, "blocking_reader"}


def sentence(cause: str, *, who: str = "a program") -> str:
    """What a cause means; `who` is the subject where a program did something."""
    return f"{who} {SENTENCES[cause]}" if cause in _OF_A_PROGRAM else SENTENCES[cause]
