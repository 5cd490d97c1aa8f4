"""What tells the kernels apart on which the datapath behaves differently."""

from __future__ import annotations

from pathlib import Path

# FIONREAD on a member of a sockhash counts its psock queue only (bpf/kernel.h), so a pair whose
# reader could miss TCP data leaves the sockhash, where elsewhere its direction pauses.
FIONREAD_OMITS_TCP = " tcp_bpf_ioctl\n" in Path("/proc/kallsyms").read_text()
