"""What the running kernel offers: BTF fields, fentry programs, lockdown.

gather() runs in the process of the exercises, since the kernel's BTF takes several MB once loaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Any

from sockredird.check.findings import FAIL, PASS, WARN, Finding
from sockredird.datapath import detectors
from sockredird.kernel import libbpf
from sockredird.kernel.uapi import AttachType, ProgType
from sockredird.loader import offsets
from sockredird.loader.btf import KernelTypes

LOCKDOWN = Path("/sys/kernel/security/lockdown")
WATCHED = "tcp_splice_read"
RETURN_0 = bytes.fromhex("b7000000000000009500000000000000")  # r0 = 0; exit


def fentry_refusal() -> str:
    """Why fentry programs cannot be attached to kernel functions; empty if they can."""
    with closing(KernelTypes()) as kernel:
        function = kernel.function(WATCHED)
    if function is None:
        return f"{WATCHED} is not in the kernel's BTF"
    try:
        with libbpf.load_program(
            ProgType.TRACING, "watch", RETURN_0, AttachType.TRACE_FENTRY, function
        ) as program:
            libbpf.create_tracing_link(program, AttachType.TRACE_FENTRY).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def lockdown(path: Path = LOCKDOWN) -> str:
    """The mode in brackets in e.g. 'none [integrity] confidentiality'; 'none' if not built in."""
    try:
        match = re.search(r"\[(\w+)\]", path.read_text())
    except FileNotFoundError:
        return "none"
    except OSError:
        return "unknown"
    return match[1] if match else "unknown"


def gather() -> dict[str, Any]:
    return {
        "absent_fields": offsets.absent(),
        "fentry_refusal": fentry_refusal(),
        "lockdown": lockdown(),
    }


def findings(facts: dict[str, Any], attached: Collection[str] = ()) -> list[Finding]:
    """Findings that need no datapath, from what gather() returned.

    `attached`: the detectors of a datapath, if there is one.
    """
    if "absent_fields" not in facts:
        return [Finding("btf", WARN, f"not tried: {facts.get('error')}")]
    return [
        lockdown_finding(facts["lockdown"]),
        _fields(facts),
        _fentry(facts["fentry_refusal"], attached),
    ]


def lockdown_finding(mode: str) -> Finding:
    if mode == "confidentiality":
        return Finding(
            "lockdown",
            FAIL,
            "the kernel is locked down (confidentiality), and lets no BPF program read the state "
            "of sockets: boot with lockdown=integrity",
        )
    details = {
        "none": "kernel lockdown is off",
        "unknown": "whether the kernel is locked down cannot be read",
    }
    return Finding(
        "lockdown", PASS, details.get(mode, f"kernel lockdown ({mode}) permits acceleration")
    )


def _fields(facts: dict[str, Any]) -> Finding:
    if "sk_psock.msg_tot_len" in facts["absent_fields"]:
        return Finding(
            "btf", PASS, "all needed fields are there; of unread bytes an upper bound is known"
        )
    return Finding("btf", PASS, "all needed fields are there; unread bytes are known exactly")


def _fentry(refusal: str, attached: Collection[str]) -> Finding:
    if refusal:
        return Finding(
            "fentry",
            WARN,
            f"no fentry programs ({refusal}): programs that use splice(2) cannot be noticed on "
            "this kernel, so leave them out of scope",
        )
    if not attached:
        return Finding("fentry", PASS, "programs that use splice(2) can be noticed")
    seen, missing = detectors.seen(attached)
    if missing:
        return Finding(
            "fentry",
            WARN,
            f"not noticed on accelerated connections: {'; '.join(missing)}: leave programs that "
            "use them out of scope",
        )
    return Finding("fentry", PASS, f"noticed on accelerated connections: {'; '.join(seen)}")
