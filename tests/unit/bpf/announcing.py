"""What happens to a socket, while its peer sends to it: state.h, announce_change()."""

from __future__ import annotations

from unit.bpf.ops import Add, If, Load, Ops, Store
from unit.bpf.protocol import KERNEL, LOOKS, REDIRECTS, Protocol, either, full, has, loads, stores

LOST = has(idle=1, unread=0, queue=1)


def message(place: str) -> Ops:
    """It is redirected unless something was announced, and is found there."""
    return (
        Add("references", 1),
        full("sockredir_msg"),
        Load("changes", "count"),
        If("changes", 0, REDIRECTS, (Load("cause", place), If("cause", 0, REDIRECTS))),
    )


def announced(place: str) -> Ops:
    return Store(place, 1), full("announce_change 1"), Add("count", 1)


def remembered(place: str) -> Ops:
    """The new count is remembered if nothing is found: no later message looks again."""
    look = (loads("what_changed"), Load("cause", place))
    return Load("changes", "count"), If("changes", 1, look)


ANNOUNCING = {
    "shut down while the peer sends": Protocol(
        {
            "half_closed": (
                Store("shutdown", 1),
                Add("count", 1),
                full("announce_change 2"),
                *LOOKS,
            ),
            "sockredir_msg": message("shutdown"),
        },
        LOST,
        {"references": 1},
    ),
    "shut down as the peer is paired": Protocol(
        {
            "half_closed": (
                Add("count", 1),
                full("announce_change 2"),
                Load("peer", "server_sk"),
            ),
            "server_established, sockredir_msg": (
                Store("server_sk", 1),
                KERNEL,
                Load("changes", "count"),
                If("changes", 0, REDIRECTS),
            ),
        },
        has(peer=0, queue=1),
    ),
    "shut down, and remembered as not": Protocol(
        {"half_closed": announced("shutdown"), "what_changed": remembered("shutdown")},
        has(changes=1, cause=0),
    ),
    "refused, and off the sockhash at once": Protocol(
        {
            "refuse": (Store("guard", 1),),
            "guarded_and_idle": (
                Load("refused", "guard"),
                If("refused", 1, (Add("count", 1), full("announce_change 2"), *LOOKS)),
            ),
            "sockredir_msg": message("guard"),
        },
        LOST,
        {"references": 1},
    ),
    "refused, and remembered as not": Protocol(
        {"refuse": announced("guard"), "what_changed": remembered("guard")},
        has(changes=1, cause=0),
    ),
    "a refused call reads, and a direction begins": Protocol(
        {
            "refuse": (Add("count", 1), full("announce_change 2"), Store("copied", 1)),
            "begins": (Load("read", "copied"), loads("begins"), Load("changes", "count")),
        },
        has(read=1, changes=0),
    ),
    "a refused call reads, and its connection ends": Protocol(
        {
            "refuse": (Store("guard", 1), full("announce_change 1"), Store("copied", 1)),
            "note_readers": (Load("read", "copied"), loads("note_readers"), Load("cause", "guard")),
        },
        has(read=1, cause=0),
    ),
    # a sender that finds the cause looks for it once more, and then at the mark
    "splice(2) while a peer sends": Protocol(
        {
            "sockredir_spliced": (
                Store("reset_at", 1),
                stores("sockredir_spliced"),
                Store("guard", 1),
            ),
            "what_changed, would_be_overtaken": (
                Load("cause", "guard"),
                Load("again", "guard"),
                If("again", 1, (loads("would_be_overtaken"), Load("mark", "reset_at"))),
            ),
        },
        either(has(cause=1, again=0), has(cause=1, mark=0)),
    ),
    "splice(2) with something unread, and a walk": Protocol(
        {
            "harmed": (Store("reset_at", 1), stores("harmed"), Store("guard", 1)),
            "is_stuck_in_splice": (
                Load("cause", "guard"),
                If("cause", 1, (loads("is_stuck_in_splice"), Load("mark", "reset_at"))),
            ),
        },
        has(cause=1, mark=0),
    ),
    # the mark is taken away once no redirect can come any more
    "splice(2) with nothing unread while a peer sends": Protocol(
        {
            "sockredir_spliced": (
                Store("reset_at", 1),
                Add("count", 1),
                full("announce_change 2"),
                *LOOKS,
                If("unread", 0, (Store("reset_at", 0),)),
            ),
            "sockredir_msg": (
                Add("references", 1),
                full("sockredir_msg"),
                Load("changes", "count"),
                If("changes", 0, REDIRECTS),
            ),
        },
        has(reset_at=0, queue=1),
        {"references": 1},
    ),
    "read before a call that does not find what is unread": Protocol(
        {
            "tcp_bpf_recvmsg, harmed": (Store("queue", 0), KERNEL, Store("reset_at", 1)),
            "to_be_reset": (
                Load("mark", "reset_at"),
                If("mark", 1, (loads("to_be_reset"), Load("unread", "queue"))),
            ),
        },
        has(mark=1, unread=1),
        {"queue": 1},
    ),
}
