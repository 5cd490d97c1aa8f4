"""How an end finds the other one, and what is left for those who look for it."""

from __future__ import annotations

from unit.bpf.ops import If, Load, Store
from unit.bpf.protocol import KERNEL, Protocol, either, has, loads, stores

PAIRING = {
    "a server joins, and its client sends": Protocol(
        {
            "server_established": (Store("state", 1), stores("join"), Store("server_sk", 1)),
            "find_peer": (
                Load("sk", "server_sk"),
                If("sk", 1, (loads("read_handshake"), Load("st", "state"))),
            ),
        },
        has(sk=1, st=0),
    ),
    "an established connection is joined": Protocol(
        {
            "complete": (Store("state", 1), stores("complete"), Store("joined", 3)),
            "find_peer": (
                Load("ends", "joined"),
                If("ends", 3, (loads("read_handshake"), Load("st", "state"))),
            ),
        },
        has(ends=3, st=0),
    ),
    # once the handshake is deleted its memory is another connection's, whose socket is 9
    "an end finds its peer, and somebody looks for it": Protocol(
        {
            "find_peer": (
                Store("peer_st", 1),
                stores("find_peer 1"),
                Store("peer_sk", 1),
                stores("find_peer 2"),
                Store("handshake", 0),
                KERNEL,
                Store("server_sk", 9),
            ),
            "find_other_end": (
                Load("first", "peer_sk"),
                If(
                    "first",
                    0,
                    (
                        Load("there", "handshake"),
                        If("there", 1, (Load("found", "server_sk", after=("there",)),)),
                    ),
                ),
                loads("find_other_end 1"),
                Load("sk", "peer_sk"),
                loads("find_other_end 2"),
                Load("st", "peer_st"),
            ),
        },
        either(has(found=9, sk=0), has(there=0, sk=0), has(sk=1, st=0)),
        {"handshake": 1, "server_sk": 1},
    ),
    "what a direction waits for": Protocol(
        {
            "has_read": (Store("begin_after", 1), stores("has_read"), Store("awaits", 1)),
            "note_readers": (
                Load("reads", "awaits"),
                If("reads", 1, (loads("may_have_read"), Load("after", "begin_after"))),
            ),
        },
        has(reads=1, after=0),
    ),
}
