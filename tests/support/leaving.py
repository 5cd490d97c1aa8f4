"""Has pairs leave the sockhash that have no reason to."""

from __future__ import annotations

from sockredird.datapath.generation import Generation
from sockredird.kernel import libbpf
from sockredird.loader.header import record
from sockredird.loader.records import CAUSES, Settings

_REASON = "idle"  # one for which they may join again


def have_all_leave(generation: Generation) -> None:
    """The next walks take every pair off that is there now (bpf/leave/walk.c: leaving_of())."""
    with (
        libbpf.open_pin(generation.directory / "peers") as peers,
        libbpf.open_pin(generation.directory / "leaving") as leaving,
        libbpf.open_pin(generation.directory / "settings") as settings,
    ):
        stored = libbpf.lookup(settings, bytes(4), record("settings").size)
        epoch = Settings.unpack(stored).epoch
        new = record("leaving").pack(
            created=epoch, stopped_in=epoch, reason=list(CAUSES).index(_REASON)
        )
        for key in libbpf.keys(peers, record("end").size):
            pair = record("end").unpack(key).pair
            libbpf.update(leaving, record("pair").pack(**pair._asdict()), new)
