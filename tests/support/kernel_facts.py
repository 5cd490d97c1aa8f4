"""What tells the kernels apart on which the datapath behaves differently."""

from __future__ import annotations

from contextlib import closing
from functools import cache
from pathlib import Path

from sockredird.check.kernel_facts import RETURN_0
from sockredird.kernel import libbpf
from sockredird.kernel.uapi import AttachType, ProgType
from sockredird.loader.btf import KernelTypes

# FIONREAD on a member of a sockhash counts its psock queue only (bpf/kernel.h), so a pair whose
# reader could miss TCP data leaves the sockhash, where elsewhere its direction pauses.
FIONREAD_OMITS_TCP = " tcp_bpf_ioctl\n" in Path("/proc/kallsyms").read_text()


@cache
def permits_map_iterators() -> bool:
    """Where it does not, members are visited by test runs (datapath/visits.py)."""
    with closing(KernelTypes()) as kernel:
        target = kernel.function("bpf_iter_sockmap")
    assert target is not None
    kind = AttachType.TRACE_ITER
    try:
        libbpf.load_program(ProgType.TRACING, "probe", RETURN_0, kind, target).close()
    except PermissionError:
        return False
    return True
