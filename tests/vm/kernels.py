"""Which Debian kernels are booted, and the root each of them comes with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Root:
    suite: str
    # Suites that only bring a kernel, installed beside the suite's own
    kernel_suites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kernel:
    version: str  # as in KERNEL=..., and as the image's file name starts
    root: Root


BOOKWORM = Root("bookworm")
TRIXIE = Root("trixie", ("trixie-backports",))

KERNELS = {
    kernel.version: kernel
    for kernel in (Kernel("6.1", BOOKWORM), Kernel("6.12", TRIXIE), Kernel("7.3", TRIXIE))
}


def run_name(version: str, boots: str = "package") -> str:
    """What the results of a sequence of boots are called: by the kernel alone for the package's."""
    return version if boots == "package" else f"{version}-{boots}"
