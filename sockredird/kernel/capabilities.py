"""The capabilities(7) the daemon works with, named where one is missing."""

from __future__ import annotations

from pathlib import Path

# As in CapabilityBoundingSet= of systemd/sockredird.service; bits of <linux/capability.h>.
NEEDED = {
    "CAP_NET_ADMIN": 12,  # network programs, and attaching them
    "CAP_PERFMON": 38,  # programs that read kernel memory
    "CAP_BPF": 39,  # maps and programs
}
_SYS_ADMIN = 21  # stands for all of them where BPF is concerned


def lacking() -> list[str]:
    """Those of NEEDED that this process does not have."""
    status = Path("/proc/self/status").read_text()
    effective = next(int(line[7:], 16) for line in status.splitlines() if line[:7] == "CapEff:")
    if effective >> _SYS_ADMIN & 1:
        return []
    return [name for name, bit in NEEDED.items() if not effective >> bit & 1]


def hint() -> str:
    """To be appended to an error that may be for want of a capability; empty if none is."""
    names = " and ".join(lacking())
    if not names:
        return ""
    return f"; sockredird lacks {names}: see CapabilityBoundingSet= of its unit, or run it as root"
