"""binfmt_misc recognises the programs of an architecture, and no others."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import pytest

from vm import foreign
from vm.architectures import ARCHITECTURES, Architecture


def recognises(architecture: Architecture, header: bytes) -> bool:
    """As the kernel compares them: fs/binfmt_misc.c, search_binfmt_handler()."""
    _, _, kind, offset, *escaped, _, _ = foreign.registration(architecture).split(":")
    assert (kind, offset) == ("M", "")
    magic, mask = (bytes.fromhex(text.replace("\\x", "")) for text in escaped)
    pairs = zip(header, magic, mask, strict=False)
    return all((byte ^ wanted) & bits == 0 for byte, wanted, bits in pairs)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_program_of_this_machine(architecture: Architecture) -> None:
    header = Path(sys.executable).read_bytes()[:64]
    here = platform.machine() == architecture.machine
    assert recognises(architecture, header) == here


def test_as_debian_registers_it() -> None:
    """/usr/lib/binfmt.d/qemu-aarch64.conf of qemu-user-binfmt, which escapes letters less."""
    theirs = (
        r":qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
        r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
        r":/usr/bin/qemu-aarch64:"
    )
    ours = foreign.registration(ARCHITECTURES["arm64"])
    plain = re.sub(r"\\x(4[5c]|46)", lambda found: chr(int(found[1], 16)), ours)
    assert plain.startswith(theirs)
