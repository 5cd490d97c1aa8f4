"""Reads BPF ring buffers through libbpf."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from sockredird.kernel.libbpf import Fd, check
from sockredird.kernel.libbpf_prototypes import RingCallback, lib


class RingBuffers:
    """Reads several BPF ring buffers. `fileno()` is an epoll descriptor for an event loop."""

    def __init__(self) -> None:
        self._manager: int | None = None
        self._callbacks: list[Any] = []

    def add(self, ring: Fd, callback: Callable[[bytes], None]) -> None:
        def trampoline(_context: object, data: int, size: int) -> int:
            callback(ctypes.string_at(data, size))
            return 0

        function = RingCallback(trampoline)
        self._callbacks.append(function)  # libbpf calls it as long as the ring buffer is open
        if self._manager is None:
            ctypes.set_errno(0)
            self._manager = lib.ring_buffer__new(ring.number, function, None, None)
            if not self._manager:
                raise OSError(ctypes.get_errno(), "open ring buffer")
        else:
            added = lib.ring_buffer__add(self._manager, ring.number, function, None)
            check(added, "open ring buffer")

    def fileno(self) -> int:
        return int(lib.ring_buffer__epoll_fd(self._manager))

    def consume(self) -> int:
        """Calls back for each record that waits, and returns how many there were."""
        return check(lib.ring_buffer__consume(self._manager), "read ring buffer")

    def close(self) -> None:
        if self._manager is not None:
            lib.ring_buffer__free(self._manager)
            self._manager = None
        self._callbacks.clear()
