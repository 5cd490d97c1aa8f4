"""Go programs are recognised by their ELF files, whoever made those."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest

from sockredird.check import splicers
from sockredird.check.gobinary import is_go


def test_go_by_its_magic(tmp_path: Path) -> None:
    """Stripped of its sections, a Go binary still has it where its data begins."""
    raw = bytearray(Path(sys.executable).resolve().read_bytes())
    (phoff,) = struct.unpack_from("=Q", raw, 32)
    size, count = struct.unpack_from("=2H", raw, 54)
    struct.pack_into("=QHHH", raw, 40, 0, *struct.unpack_from("=2H", raw, 48), 0)
    struct.pack_into("=2H", raw, 60, 0, 0)
    file = tmp_path / "program"
    for magic in (b"", b"\xff Go buildinf:"):
        for i in range(count):
            kind, flags, offset = struct.unpack_from("=IIQ", raw, phoff + i * size)
            if (kind, flags & 2) == (1, 2):
                raw[offset : offset + len(magic)] = magic
        file.write_bytes(raw)
        with file.open("rb") as opened:
            assert is_go(opened.fileno()) is bool(magic)


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + b"\xff" * 200, b"#!/bin/sh\n" * 99]
)
def test_what_is_no_program(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with file.open("rb") as opened:
        assert not is_go(opened.fileno())


def test_a_name_that_is_no_file(tmp_path: Path) -> None:
    """A program chooses what its command line says: no device is opened, no FIFO waited for."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/null"), tmp_path):
        with pytest.raises(OSError):
            splicers.open_file(str(path))
