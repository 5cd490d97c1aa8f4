"""The settings of a generation, which its programs read at each run; and what they ask for."""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from typing import Any

from sockredird.kernel import libbpf
from sockredird.kernel.libbpf import Fd
from sockredird.loader.header import record
from sockredird.loader.records import Settings

_ZERO = bytes(4)


class LiveSettings:
    """What was written last is kept here, as only the daemon writes."""

    def __init__(self, pin: Fd) -> None:
        """Reads them. Raises OSError."""
        self._pin = pin
        found = Settings.unpack(libbpf.lookup(pin, _ZERO, record("settings").size))
        # a crash may have left these set; the next write clears them
        self.now = replace(found, listing=0, trial=0)

    def set(self, **fields: Any) -> None:
        """Changes fields of struct settings, in one write that the programs see whole."""
        self.replace(replace(self.now, **fields))

    def replace(self, settings: Settings) -> None:
        """Changes all of them."""
        self.now = settings
        libbpf.update(self._pin, _ZERO, settings.pack())


def begin_request(requested: Fd, what: int) -> None:
    """To be called before a request is carried out: the programs make it again from here on.

    Pairs with ask() of bpf/peer_state.h. What is looked at next has to be read after this: a walk
    sees to that itself (visit() of bpf/leave/walk.c), who reads a map calls order_requests() first.
    """
    libbpf.update(requested, what.to_bytes(4, sys.byteorder), bytes(8))


def order_requests() -> None:
    """Has what is read from here on hold all for which a request was not made again.

    The kernel counts writers of a map down when an update is done (bpf_map_write_active_dec()), by
    an atomic instruction, which is a full barrier on x86. Elsewhere it is none; but a program that
    found the request made has ended once this returns, and so has what it wrote before.
    """
    if platform.machine() != "x86_64":
        libbpf.wait_for_programs()
