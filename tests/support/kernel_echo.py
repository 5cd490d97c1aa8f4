"""Loads tests/support/bpf/kernel_echo.c."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sockredird.kernel import libbpf
from sockredird.kernel.libbpf_prototypes import lib
from support.bcc_child import pinned
from support.checkout import REPOSITORY

SOURCE = REPOSITORY / "tests" / "support" / "bpf" / "kernel_echo.c"
SK_SKB = 14  # enum bpf_prog_type
STREAM_VERDICT = 5  # enum bpf_attach_type


@contextmanager
def attached(directory: Path) -> Iterator[None]:
    """For take(), inside the with block; pins go in `directory`."""
    with (
        pinned(SOURCE, directory, {"verdict": ("echo_verdict", SK_SKB)}, ["echoed"]),
        libbpf.open_pin(directory / "verdict") as verdict,
        libbpf.open_pin(directory / "echoed") as echoed,
    ):
        libbpf.check(
            lib.bpf_prog_attach(verdict.number, echoed.number, STREAM_VERDICT, 0),
            "attach sk_skb program to sockhash",
        )
        yield


def take(directory: Path, sock: socket.socket) -> None:
    """The kernel answers on this socket from here on."""
    with libbpf.open_pin(directory / "echoed") as echoed:
        libbpf.update(echoed, bytes(4), sock.fileno().to_bytes(4, "little"))
