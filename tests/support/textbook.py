"""Loads tests/support/bpf/textbook.c."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sockredird.kernel import libbpf
from sockredird.kernel.libbpf import Fd
from sockredird.kernel.uapi import AttachType, ProgType
from support.bcc_child import pinned
from support.checkout import REPOSITORY

SOURCE = REPOSITORY / "tests" / "support" / "bpf" / "textbook.c"
KEY_SIZE = 16  # struct tuple


def delete_members(members: int) -> int:
    """Unloads as tutorials do: takes each socket off the sockhash; how many."""
    lib = ctypes.CDLL("libbpf.so.1")
    key = ctypes.create_string_buffer(KEY_SIZE)
    deleted = 0
    while lib.bpf_map_get_next_key(members, None, key) == 0:
        lib.bpf_map_delete_elem(members, key)
        deleted += 1
    return deleted


@contextmanager
def attached(directory: Path, cgroup: Path, source: Path = SOURCE) -> Iterator[int]:
    """The textbook datapath works on `cgroup` inside the with block; pins go in `directory`.

    The value is a file descriptor of the sockhash. Another source has programs of its own name.
    """
    name = source.name.partition(".")[0]
    programs = {
        "sockops": (f"{name}_sockops", int(ProgType.SOCK_OPS)),
        "msg": (f"{name}_msg", int(ProgType.SK_MSG)),
    }
    with (
        pinned(source, directory, programs, ["members"]),
        libbpf.open_pin(directory / "sockops") as sockops,
        libbpf.open_pin(directory / "msg") as msg,
        libbpf.open_pin(directory / "members") as members,
        Fd(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)) as cgroup_fd,
    ):
        libbpf.attach_sk_msg(msg, members)
        with libbpf.create_cgroup_link(sockops, cgroup_fd, AttachType.CGROUP_SOCK_OPS):
            yield members.fileno()
