"""Compiles BPF programs of the tests' own and pins them.

Runs as a script, which keeps BCC out of pytest's process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SHIM = REPOSITORY / "sockredird" / "bpf" / "kernel-shim"


@contextmanager
def pinned(
    source: Path, directory: Path, programs: Mapping[str, tuple[str, int]], maps: list[str]
) -> Iterator[None]:
    """Pins programs, (function, enum bpf_prog_type) by name, and maps; unpins them at the end."""
    directory.mkdir()
    try:
        arguments = json.dumps([str(source), str(directory), programs, maps])
        subprocess.run([sys.executable, __file__, arguments], check=True, timeout=60)
        yield
    finally:
        for pin in directory.iterdir():
            pin.unlink()
        directory.rmdir()


def _compile_and_pin(
    source: str, directory: str, programs: dict[str, tuple[str, int]], maps: list[str]
) -> None:
    os.environ["BCC_KERNEL_SOURCE"] = str(SHIM)
    from bcc import BPF
    from bcc import lib as libbcc

    module = BPF(text=Path(source).read_text(), cflags=["-DSOCKREDIR_PAGE_SIZE=4096"])
    pins = {pin: module.load_func(*program).fd for pin, program in programs.items()}
    pins.update({name: libbcc.bpf_table_fd(module.module, name.encode()) for name in maps})
    for name, fd in pins.items():
        path = Path(directory, name)
        if libbcc.bpf_obj_pin(fd, os.fsencode(path)) != 0:
            raise OSError(f"cannot pin {path}")


if __name__ == "__main__":
    _compile_and_pin(*json.loads(sys.argv[1]))
