"""What senders ask of walks: to wake readers at borders, and to walk at all."""

from __future__ import annotations

from unit.bpf.ops import Add, Exchange, If, Load, Ops, Store
from unit.bpf.protocol import Protocol, full, has, loads, stores

# The direction redirects where `mode` is 0. Nothing but the count tells of a border.
AT_BORDER: Ops = (Load("counted", "borders"), If("counted", 1, (loads("at_border 1"),)))

WALKING = {
    "forced to TCP while a walk looks": Protocol(
        {
            "force_to_tcp": (Store("mode", 1), stores("force_to_tcp"), Store("borders", 1)),
            "at_border": (*AT_BORDER, Load("by_tcp", "mode")),
        },
        has(counted=1, by_tcp=0),
    ),
    "paused while a walk looks": Protocol(
        {
            "by_tcp_on_member": (
                Store("mode", 1),
                stores("by_tcp_on_member 1"),
                Store("borders", 1),
            ),
            "at_border": (*AT_BORDER, Load("by_tcp", "mode")),
        },
        has(counted=1, by_tcp=0),
    ),
    "a message by TCP that is counted, and not sent yet": Protocol(
        {
            "sockredir_msg, by_tcp_on_member": (
                Add("references", 1),
                full("sockredir_msg"),
                Store("borders", 1),
                Store("tcp_queue", 1),
                Add("references", -1, release=True),
            ),
            "at_border": (
                *AT_BORDER,
                Load("idle", "references"),
                loads("idle_sender"),
                Load("unread", "tcp_queue"),
            ),
        },
        has(counted=1, idle=1, unread=0),
        {"references": 1},
    ),
    "a message by TCP as a walk settles the one before": Protocol(
        {
            "by_tcp_on_member": (
                Store("borders", 2),
                full("by_tcp_on_member 2"),
                Load("seen", "borders_seen"),
            ),
            "at_border": (
                Store("borders_seen", 1),
                full("at_border 2"),
                Load("counted", "borders"),
            ),
        },
        has(seen=0, counted=1),
        {"borders": 1},
    ),
    "asked for as it is carried out": Protocol(
        {
            "ask": (Store("subject", 1), Exchange("made", "requested", 1, "ask")),
            "begin_request, visit": (
                Store("requested", 0),
                full("visit"),
                Load("found", "subject"),
            ),
        },
        has(made=1, found=0),
        {"requested": 1},
    ),
}
