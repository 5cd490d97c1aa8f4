"""A build that goes to TCP at one quiet point in eight, and what a daemon does beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from sockredird.datapath import join
from sockredird.datapath.generation import Generation
from support.background import Background
from support.edited import Edit

_PAUSES = (
    "	__u64 now = bpf_jiffies64(), psock;\n	struct tcp_sock *tp;\n	enum cause cause;\n"
)
ALTERNATES: Edit = (
    "carry/redirect.c",
    _PAUSES,
    f"{_PAUSES}\n	if (!(bpf_get_prandom_u32() & 7) && may_pause(sk, st)) {{\n"
    "		pause(st, CAUSE_REVALIDATION);\n		return 1;\n	}\n",
)
NO_LOOK_AT_THE_LOCK: Edit = (
    "carry/redirect.c",
    "if (!behind && peer_stays_busy(st, size))",
    "if (0)",
)
LOOK_S = 0.1


@contextmanager
def served(generation: Generation, addresses: str = "loopback") -> Iterator[None]:
    """Walks without a pause, and joins what is connected ten times a second.

    Pairs that had to leave come back at once, and not after ten seconds: so they leave more often.
    """
    ending = threading.Event()

    def serve() -> None:
        joiner, looked = join.Joiner(), 0.0
        while not ending.is_set():
            generation.members.retire(0.01, lambda walked: not walked.leaving)
            if time.monotonic() - looked > LOOK_S:
                joiner.look(generation, addresses)
                looked = time.monotonic()
            time.sleep(0.001)

    with mock.patch.multiple(join, FIRST_RETRY_S=0.0, RETRY_S=0.0, LONGEST_RETRY_S=1.0):
        thread = Background(serve)
        try:
            yield
        finally:
            ending.set()
            thread.join(10)
