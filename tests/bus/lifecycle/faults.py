"""Makes the n-th step of an operation fail, or kills the process there.

A step is anything that changes the kernel or a file: each call of libbpf, each change of a
directory, and the compiler's child as a whole.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sockredird.errors import LoadFailed
from sockredird.kernel.libbpf_prototypes import PROTOTYPES, lib
from sockredird.loader import compiler

FAIL, KILL = "fails", "is killed"
_PATH_STEPS = ("mkdir", "rename", "unlink", "rmdir", "open")
# these read, or free; what they would do if they failed is nothing
_HARMLESS = {"btf__free", "ring_buffer__free", "libbpf_set_print", "libbpf_num_possible_cpus"}


class Faults:
    """Counts steps from arm() on; the `index`-th goes wrong. Not undone: for a forked child."""

    def __init__(self, index: int, mode: str) -> None:
        self.steps = 0
        self.hit = ""
        self._index = index
        self._mode = mode
        self._armed = False
        for name in PROTOTYPES:
            if name not in _HARMLESS:
                self._wrap_libbpf(name)
        for name in _PATH_STEPS:
            self._wrap_path(name)
        self._wrap_compiler()

    def arm(self) -> None:
        self._armed = True

    def disarm(self) -> None:
        self._armed = False

    def _wrong(self, name: str) -> bool:
        if not self._armed:
            return False
        self.steps += 1
        if self.steps != self._index:
            return False
        self.hit = name
        if self._mode == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    def _wrap_libbpf(self, name: str) -> None:
        real = getattr(lib, name)
        failure: Any = None if real.restype is ctypes.c_void_p else -errno.ENOMEM

        def wrapper(*arguments: Any) -> Any:
            if self._wrong(name):
                ctypes.set_errno(errno.ENOMEM)
                return failure
            return real(*arguments)

        setattr(lib, name, wrapper)

    def _wrap_path(self, name: str) -> None:
        real: Callable[..., Any] = getattr(Path, name)

        def wrapper(path: Path, *arguments: Any, **keywords: Any) -> Any:
            # reading what the compiler compiles is no step
            if "sockredird/bpf" not in str(path) and self._wrong(f"{name} {path.name}"):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return real(path, *arguments, **keywords)

        setattr(Path, name, wrapper)

    def _wrap_compiler(self) -> None:
        real = compiler.compile_and_pin

        def wrapper(directory: Path, max_connections: int) -> None:
            if self._wrong("compiler, before"):
                raise LoadFailed("injected")
            real(directory, max_connections)
            if self._wrong("compiler, after"):
                raise LoadFailed("injected")

        compiler.compile_and_pin = wrapper
