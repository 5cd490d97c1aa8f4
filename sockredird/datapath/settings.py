"""The settings of a generation, which its programs read at each run; and what they ask for."""

from __future__ import annotations

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

    Pairs with ask() of bpf/peer_state.h.
    """
    libbpf.update(requested, what.to_bytes(4, sys.byteorder), bytes(8))
