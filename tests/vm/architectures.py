"""What differs between the machines that guests are."""

from __future__ import annotations

import platform
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    name: str  # as Debian and Go call it
    machine: str  # as uname(2) and QEMU call it
    elf_machine: int  # <linux/elf-em.h>
    package: str  # of its qemu-system
    options: tuple[str, ...]  # of its qemu-system
    console: str

    @property
    def is_foreign(self) -> bool:
        """Its programs run on this host under qemu-user only."""
        return platform.machine() != self.machine


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            name="amd64",
            machine="x86_64",
            elf_machine=62,
            package="qemu-system-x86",
            # 7.3 hangs when it finds the HPET of an emulated machine
            options=("-machine", "q35,hpet=off"),
            console="ttyS0",
        ),
        Architecture(
            name="arm64",
            machine="aarch64",
            elf_machine=183,
            package="qemu-system-arm",
            options=("-machine", "virt,gic-version=3"),
            console="ttyAMA0",
        ),
    )
}
