"""Loads tests/textbook/textbook.c.

Run as a script, it compiles and pins, which keeps BCC out of pytest's process.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "tests" / "textbook" / "textbook.c"
SHIM = REPOSITORY / "sockredird" / "bpf" / "kernel-shim"
SOCK_OPS, SK_MSG = 13, 16  # enum bpf_prog_type
KEY_SIZE = 16  # struct tuple


def _compile_and_pin(directory: Path) -> None:
    os.environ["BCC_KERNEL_SOURCE"] = str(SHIM)
    from bcc import BPF
    from bcc import lib as libbcc

    module = BPF(text=SOURCE.read_text(), cflags=["-DSOCKREDIR_PAGE_SIZE=4096"])
    pins = {
        "sockops": module.load_func("textbook_sockops", SOCK_OPS).fd,
        "msg": module.load_func("textbook_msg", SK_MSG).fd,
        "members": libbcc.bpf_table_fd(module.module, b"members"),
    }
    for name, fd in pins.items():
        if libbcc.bpf_obj_pin(fd, os.fsencode(directory / name)) != 0:
            raise OSError(f"cannot pin {directory / name}")


def delete_members(members: int) -> int:
    """Unloads as tutorials do: takes each socket off the sockhash; how many."""
    libbpf = ctypes.CDLL("libbpf.so.1")
    key = ctypes.create_string_buffer(KEY_SIZE)
    deleted = 0
    while libbpf.bpf_map_get_next_key(members, None, key) == 0:
        libbpf.bpf_map_delete_elem(members, key)
        deleted += 1
    return deleted


@contextmanager
def attached(directory: Path, cgroup: Path) -> Iterator[int]:
    """The textbook datapath works on `cgroup` inside the with block; pins go in `directory`.

    The value is a file descriptor of the sockhash.
    """
    from sockredird import libbpf
    from sockredird.libbpf import Fd

    directory.mkdir()
    try:
        subprocess.run([sys.executable, __file__, str(directory)], check=True, timeout=60)
        with (
            libbpf.open_pin(directory / "sockops") as sockops,
            libbpf.open_pin(directory / "msg") as msg,
            libbpf.open_pin(directory / "members") as members,
            Fd(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)) as cgroup_fd,
        ):
            libbpf.attach_sk_msg(msg, members)
            with libbpf.create_cgroup_link(sockops, cgroup_fd):
                yield members.fileno()
    finally:
        for pin in directory.iterdir():
            pin.unlink()
        directory.rmdir()


if __name__ == "__main__":
    _compile_and_pin(Path(sys.argv[1]))
