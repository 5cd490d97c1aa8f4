"""Whether a program was built by Go.

Its binary has a section for that, or a mark where the data segment begins. Go's own debug/buildinfo
looks for the same two.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

_MAGIC = b"\xff Go buildinf:"
_SECTION = b".go.buildinfo"
_MOST = 1 << 16  # bytes that are read of a table, or of a segment
_HEADER = struct.Struct("=32xQQ6x5H")  # Elf64_Ehdr: e_phoff, e_shoff, then from e_phentsize on
_SEGMENT = struct.Struct("=IIQ16xQ")  # Elf64_Phdr: type, flags, offset, file size
_SECTION_HEADER = struct.Struct("=I20xQQ")  # Elf64_Shdr: name, offset, size
_ELF64_LITTLE = b"\x7fELF\x02\x01"
_PT_LOAD, _PF_W = 1, 2


def is_go(fd: int) -> bool:
    """Whether an open file, which may hold anything, is a Go program.

    Only 64-bit little-endian ELF is recognised.
    """
    head = os.pread(fd, _HEADER.size, 0)
    if len(head) < _HEADER.size or not head.startswith(_ELF64_LITTLE):
        return False
    phoff, shoff, phsize, phcount, shsize, shcount, names_at = _HEADER.unpack(head)
    sections = list(_table(fd, _SECTION_HEADER, shoff, shsize, shcount))
    if names_at < len(sections):
        _, offset, size = sections[names_at]
        if _SECTION + b"\0" in _read(fd, offset, min(size, _MOST)):
            return True
    for kind, flags, offset, size in _table(fd, _SEGMENT, phoff, phsize, phcount):
        if kind == _PT_LOAD and flags & _PF_W:  # the data segment begins with the mark
            return _MAGIC in _read(fd, offset, min(size, _MOST))
    return False


def _read(fd: int, offset: int, size: int) -> bytes:
    return os.pread(fd, size, offset) if offset < 1 << 62 else b""


def _table(
    fd: int, entry: struct.Struct, offset: int, size: int, count: int
) -> Iterator[tuple[int, ...]]:
    if size < entry.size:
        return
    raw = _read(fd, offset, min(size * count, _MOST))
    for at in range(0, len(raw) - size + 1, size):
        yield entry.unpack_from(raw, at)
