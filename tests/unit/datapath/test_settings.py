"""Requests that are begun are ordered before what is read for them, on every processor."""

from __future__ import annotations

import platform

import pytest

from sockredird.datapath import settings
from sockredird.kernel import libbpf


@pytest.mark.parametrize(("machine", "waits"), [("x86_64", 0), ("aarch64", 1)])
def test_who_reads_a_map_waits(monkeypatch: pytest.MonkeyPatch, machine: str, waits: int) -> None:
    """Where the update of a map is no full barrier, for the programs that are running."""
    waited: list[None] = []
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(libbpf, "wait_for_programs", lambda: waited.append(None))
    settings.order_requests()
    assert len(waited) == waits
