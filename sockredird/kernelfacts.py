"""What the running kernel offers apart from sockets: BTF fields, fentry programs, lockdown.

Read in the exercise's process: the kernel's BTF takes several MB once loaded.
"""

from __future__ import annotations

import ctypes
import re
from ctypes import c_int, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from sockredird import libbpf, offsets
from sockredird.finding import FAIL, PASS, WARN, Finding
from sockredird.libbpf import Fd, lib
from sockredird.uapi import AttachType, ProgType

LOCKDOWN = Path("/sys/kernel/security/lockdown")
WATCHED = b"tcp_splice_read"
_KIND_FUNC = 12  # include/uapi/linux/btf.h
_RETURN_0 = bytes.fromhex("b7000000000000009500000000000000")  # r0 = 0; exit


class _ProgLoadOpts(ctypes.Structure):
    """The head of struct bpf_prog_load_opts, libbpf bpf.h."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_uint32),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
        ("attach_btf_obj_fd", c_uint32),
        ("fd_array", c_void_p),
        ("log", c_uint64 * 3),
    ]


def fentry_refusal() -> str:
    """Why no fentry program can watch a kernel function; empty if one can."""
    btf = lib.btf__load_vmlinux_btf()
    try:
        function = lib.btf__find_by_name_kind(btf, WATCHED, _KIND_FUNC) if btf else -1
    finally:
        lib.btf__free(btf)
    if function < 0:
        return f"{WATCHED.decode()} is not in the kernel's BTF"
    options = _ProgLoadOpts(
        sz=ctypes.sizeof(_ProgLoadOpts),
        expected_attach_type=AttachType.TRACE_FENTRY,
        attach_btf_id=function,
    )
    try:
        loaded = lib.bpf_prog_load(
            ProgType.TRACING, b"watch", b"GPL", _RETURN_0, 2, ctypes.byref(options)
        )
        with Fd(libbpf.check(loaded, "load a fentry program")) as program:
            link = lib.bpf_link_create(program.number, 0, AttachType.TRACE_FENTRY, None)
            Fd(libbpf.check(link, "attach a fentry program")).close()
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


def judge(facts: dict[str, Any]) -> list[Finding]:
    """What needs no datapath, from the answer to the order `kernel`."""
    if "absent_fields" not in facts:
        return [Finding("btf", WARN, f"not tried: {facts.get('error')}")]
    return [judge_lockdown(facts["lockdown"]), _fields(facts), _fentry(facts["fentry_refusal"])]


def judge_lockdown(mode: str) -> Finding:
    if mode == "confidentiality":
        return Finding(
            "lockdown",
            FAIL,
            "the kernel is locked down (confidentiality), and lets no program read the state of "
            "sockets: boot with lockdown=integrity",
        )
    return Finding("lockdown", PASS, f"lockdown is {mode}, and in nobody's way")


def _fields(facts: dict[str, Any]) -> Finding:
    if "sk_psock.msg_tot_len" in facts["absent_fields"]:
        return Finding(
            "btf", PASS, "all needed fields are there; unread bytes are estimated from above"
        )
    return Finding("btf", PASS, "all needed fields are there; unread bytes are exact")


def _fentry(refusal: str) -> Finding:
    if refusal:
        return Finding(
            "fentry",
            WARN,
            f"no fentry programs ({refusal}): programs that splice(2) cannot be noticed on this "
            "kernel, so leave them out of scope",
        )
    return Finding("fentry", PASS, "kernel functions can be watched")
