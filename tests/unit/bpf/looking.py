"""Who uses a socket at this moment: references, timers, its wait queue and its lock."""

from __future__ import annotations

from unit.bpf.ops import Add, If, Load, Store
from unit.bpf.protocol import KERNEL, LOOKS, REDIRECTS, Protocol, has, loads

LOOKING = {
    "a redirect ends while a walk looks": Protocol(
        {
            "tcp_bpf_sendmsg": REDIRECTS,
            "retire": (
                Load("idle", "references"),
                If("idle", 1, (loads("quiet"), Load("unread", "queue"))),
            ),
        },
        has(idle=1, unread=0),
        {"references": 2},
    ),
    "a redirect ends as its reader is reset": Protocol(
        {"tcp_bpf_sendmsg": REDIRECTS, "ended": LOOKS},
        has(idle=1, unread=0),
        {"references": 2},
    ),
    # references to the socket: its own, the psock's, the timer's, and that of a redirect in flight
    "a timer is disarmed while a walk counts": Protocol(
        {
            "sk_stop_timer": (Store("timer", 0), Add("references", -1, release=True)),
            "retire": (
                Load("counted", "references"),
                loads("none_in_flight"),
                Load("pending", "timer"),
            ),
        },
        has(counted=3, pending=1),
        {"references": 4, "timer": 1},
    ),
    # references to the psock: the sockhash's, that of a redirect in flight, and the reader's
    "a reader goes to sleep beside a sender": Protocol(
        {
            "tcp_bpf_recvmsg": (Add("references", 1), KERNEL, Store("sleeper", 1)),
            "idle_sender": (
                Load("sleeps", "sleeper"),
                loads("has_no_sender 2"),
                Load("counted", "references"),
            ),
        },
        has(sleeps=1, counted=2),
        {"references": 2},
    ),
    "a reader wakes beside a sender": Protocol(
        {
            "tcp_bpf_recvmsg": (Store("sleeper", 0), Add("references", -1, release=True)),
            "idle_sender": (
                Load("counted", "references"),
                loads("has_no_sender 1"),
                Load("sleeps", "sleeper"),
            ),
        },
        has(counted=2, sleeps=1),
        {"references": 3, "sleeper": 1},
    ),
    # 2: what is at that place of the stack later
    "an entry leaves a wait queue": Protocol(
        {
            "remove_wait_queue": (Store("next", 0), KERNEL, Store("entry", 2)),
            "sleeper_on": (
                Load("names", "entry"),
                loads("sleeper_on"),
                Load("still_there", "next"),
            ),
        },
        has(names=2, still_there=1),
        {"next": 1, "entry": 1},
    ),
    "a reader takes the last byte, and goes to sleep in TCP's code": Protocol(
        {
            "tcp_recvmsg, sk_wait_data": (
                Store("owned", 1),
                KERNEL,
                Store("copied", 1),
                Store("sleeper", 1),
                Store("owned", 0, release=True),
            ),
            "may_begin": (
                Load("read", "copied"),
                loads("nobody_in_tcp_recvmsg 1"),
                Load("before", "owned"),
                loads("nobody_in_tcp_recvmsg 2"),
                Load("sleeps", "sleeper"),
            ),
        },
        has(read=1, before=0, sleeps=0),
    ),
    "a reader wakes in TCP's code": Protocol(
        {
            "sk_wait_data": (Store("owned", 1), KERNEL, Store("sleeper", 0)),
            "may_begin": (
                Load("sleeps", "sleeper"),
                loads("nobody_in_tcp_recvmsg 3"),
                Load("after", "owned"),
            ),
        },
        has(sleeps=0, after=0),
        {"sleeper": 1},
    ),
    "a reader wakes in TCP's code for nothing, and sleeps again": Protocol(
        {
            "sk_wait_data": (
                Store("owned", 1),
                KERNEL,
                Store("sleeper", 0),
                KERNEL,
                Store("sleeper", 1),
                Store("owned", 0, release=True),
            ),
            "may_begin": (
                Load("locked", "owned"),
                loads("nobody_in_tcp_recvmsg 2"),
                Load("sleeps", "sleeper"),
                loads("nobody_in_tcp_recvmsg 3"),
                Load("locked_again", "owned"),
                loads("nobody_in_tcp_recvmsg 2"),
                Load("sleeps_again", "sleeper"),
            ),
        },
        has(locked=0, sleeps=0, locked_again=0, sleeps_again=0),
        {"sleeper": 1},
    ),
    # sk_stream_wait_memory(): on the wait queue a sender has the lock, or is counted as waiting
    "a sender goes to sleep for want of room": Protocol(
        {
            "sk_stream_wait_memory": (
                Store("sleeper", 1),
                Store("waiting", 1),
                Store("owned", 0, release=True),
            ),
            "reader_sleeps": (
                Load("locked", "owned"),
                loads("reader_sleeps 2"),
                Load("sleeps", "sleeper"),
                Load("waits", "waiting"),
            ),
        },
        has(locked=0, sleeps=1, waits=0),
        {"owned": 1},
    ),
    "a sender wakes, as there is room": Protocol(
        {
            "sk_stream_wait_memory": (
                Store("owned", 1),
                KERNEL,
                Store("waiting", 0),
                Store("sleeper", 0),
                Store("owned", 0, release=True),
            ),
            "reader_sleeps": (
                Load("waits", "waiting"),
                loads("reader_sleeps 1"),
                Load("locked", "owned"),
                loads("reader_sleeps 2"),
                Load("sleeps", "sleeper"),
            ),
        },
        has(waits=0, locked=0, sleeps=1),
        {"waiting": 1, "sleeper": 1},
    ),
    "a reader goes from the psock's code to TCP's": Protocol(
        {
            "tcp_bpf_recvmsg, tcp_recvmsg": (
                Add("references", -1, release=True),
                KERNEL,
                Store("sleeper", 1),
            ),
            "may_begin": (
                Load("sleeps", "sleeper"),
                loads("nobody_in_tcp_recvmsg 3"),
                Load("counted", "references"),
            ),
        },
        has(sleeps=1, counted=2),
        {"references": 2},
    ),
}
