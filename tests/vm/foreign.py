"""Runs a command where programs of another architecture run: python3 -m vm.foreign arm64 COMMAND...

The kernel hands them to qemu-user, as a binfmt_misc of the command's own tells it: in a user
namespace, which can have one since Linux 6.7 (fs/binfmt_misc.c, bm_get_tree()). Nothing is
registered on this host. What the command mounts and starts ends with it, in namespaces of its own.

Root runs it: users 0 to 65535 are the same inside, so that what is written keeps its owners.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from support import namespaces
from vm.architectures import ARCHITECTURES, Architecture

CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000  # <linux/sched.h>
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
USERS = 65536
BINFMT_MISC = "/proc/sys/fs/binfmt_misc"
# ELF, of 64 bits, little-endian, version 1, with any ABI but the padding 0
IDENTIFICATION = b"\x7fELF\x02\x01\x01" + bytes(9)
IDENTIFICATION_MASK = b"\xff" * 7 + b"\x00" + b"\xff" * 8
# e_type: ET_EXEC or ET_DYN
TYPE, TYPE_MASK = b"\x02\x00", b"\xfe\xff"


def registration(architecture: Architecture) -> str:
    """What binfmt_misc is told (Linux: Documentation/admin-guide/binfmt-misc.rst).

    F: the interpreter is opened now, as no root has it. C: programs that are setuid stay so.
    P: the interpreter is given argv[0], too.
    """
    magic = IDENTIFICATION + TYPE + architecture.elf_machine.to_bytes(2, "little")
    mask = IDENTIFICATION_MASK + TYPE_MASK + b"\xff\xff"
    fields = [f"qemu-{architecture.machine}", "M", "", _escaped(magic), _escaped(mask)]
    return ":" + ":".join([*fields, f"/usr/bin/qemu-{architecture.machine}", "FPC"])


def _escaped(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)


def _end_with_parent() -> None:
    if namespaces.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _status(child: int) -> int:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status


def _prepare(architecture: Architecture) -> None:
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "proc", "proc", "/proc"],
        ["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT_MISC],
    ):
        subprocess.run(command, check=True)
    Path(BINFMT_MISC, "register").write_text(registration(architecture))


def main() -> int:
    architecture, command = ARCHITECTURES[sys.argv[1]], sys.argv[2:]
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child:
        theirs.close()
        if ours.recv(1):  # nothing, if it has failed
            for kind in ("uid", "gid"):
                Path(f"/proc/{child}/{kind}_map").write_text(f"0 0 {USERS}\n")
            ours.send(b"m")
        return _status(child)
    ours.close()
    namespaces.unshare(CLONE_NEWUSER | CLONE_NEWPID | namespaces.CLONE_NEWNS)
    _end_with_parent()
    theirs.send(b"u")
    if not theirs.recv(1):  # whoever writes the maps is gone
        return 1
    first = os.fork()  # all of the PID namespace ends when its first process does
    if first:
        return _status(first)
    _end_with_parent()
    _prepare(architecture)
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
