"""Threads whose failures reach the test, and a stand-in for the daemon's retiring."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sockredird.datapath.generation import Generation


class Background:
    """A thread; join() raises what it raised. A daemon thread, so that a stuck one ends with us."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function, arguments), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            self._result = function(*arguments)
        except BaseException as error:  # raised in join()
            self.error = error

    def join(self, timeout: float | None = None) -> Any:
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"a thread still runs after {timeout} s")
        if self.error is not None:
            raise self.error
        return self._result

    def wait_in_kernel(self, timeout: float = 10.0) -> None:
        """Returns once the thread sleeps for data or for room; this polls for that."""
        deadline = time.monotonic() + timeout
        while not self._sleeps():
            if time.monotonic() > deadline:
                raise TimeoutError(f"a thread does not block within {timeout} s")
            time.sleep(0.001)

    def _sleeps(self) -> bool:
        # tcp_recvmsg(), tcp_bpf_recvmsg() and sk_stream_wait_memory() do it in wait_woken();
        # a runnable thread has no wchan (get_wchan(), kernel/sched/core.c)
        place = Path(f"/proc/self/task/{self._thread.native_id}/wchan")
        return place.read_text() == "wait_woken"


@contextmanager
def retiring(generation: Generation) -> Iterator[None]:
    """Walks and retires without a pause, as a daemon would that is always being asked to."""
    ending = threading.Event()

    def walk() -> None:
        while not ending.is_set():
            generation.members.retire(0.01, lambda walked: not walked.leaving)

    thread = Background(walk)
    try:
        yield
    finally:
        ending.set()
        thread.join(10)
