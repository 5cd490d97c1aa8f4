"""The capabilities(7) that the daemon needs, and the names of those that it lacks."""

from __future__ import annotations

from pathlib import Path

# As CapabilityBoundingSet= in systemd/sockredird.service; numbers from <linux/capability.h>.
NEEDED = {
    "CAP_NET_ADMIN": 12,  # network programs, and attaching them
    "CAP_PERFMON": 38,  # programs that read kernel memory
    "CAP_BPF": 39,  # maps and programs
}
_SYS_ADMIN = 21  # includes all of them for the bpf(2) system call


def lacking() -> list[str]:
    """Names of the capabilities in NEEDED that this process does not have."""
    status = Path("/proc/self/status").read_text()
    effective = next(int(line[7:], 16) for line in status.splitlines() if line[:7] == "CapEff:")
    if effective >> _SYS_ADMIN & 1:
        return []
    return [name for name, bit in NEEDED.items() if not effective >> bit & 1]


def hint() -> str:
    """Text to append to an error that a missing capability may explain; empty if none is."""
    names = " and ".join(lacking())
    if not names:
        return ""
    return f"; sockredird lacks {names}: see CapabilityBoundingSet= of its unit, or run it as root"
