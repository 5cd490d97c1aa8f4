"""Measures round trips and streams between two processes, for exercise.py.

Both processes are Python, which takes the same time with and without acceleration. So programs that
spend less time between their calls gain more than is measured here.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from sockredird.check.tcp_pair import new_pair, sent_by_tcp

WARM_UP = 20  # round trips
READ_SIZE = 1 << 18
_CPUCLOCK_SCHED = 2  # include/linux/posix-timers.h
PATIENCE_S = 5.0


def cpus(same: bool) -> tuple[int, int] | None:
    """The CPUs for client and server; None if two are needed and there is one."""
    usable = sorted(os.sched_getaffinity(0))
    if same:
        return usable[0], usable[0]
    return (usable[0], usable[1]) if len(usable) > 1 else None


def round_trips(port: int, size: int, seconds: float, same_cpu: bool) -> dict[str, Any]:
    """Round trips per second, with a message of `size` bytes each way.

    `cpu` is the processor time of a round trip at both ends together, in seconds. On kernels with
    CONFIG_IRQ_TIME_ACCOUNTING, that of softirqs is not in it (update_rq_clock_task(),
    kernel/sched/core.c).
    """

    def serve(server: socket.socket) -> None:
        while data := server.recv(READ_SIZE):
            server.sendall(data)

    def ask(client: socket.socket, used: Callable[[], float]) -> dict[str, float]:
        message = b"x" * size

        def once() -> None:
            client.sendall(message)
            left = size
            while left:
                left -= len(client.recv(left))

        for _ in range(WARM_UP):
            once()
        count, before, start = 0, used(), time.perf_counter()
        end = start + seconds
        while (now := time.perf_counter()) < end:
            once()
            count += 1
        return {"rate": count / (now - start), "cpu": (used() - before) / count}

    return _talk(port, same_cpu, serve, ask)


def stream(port: int, size: int, seconds: float, same_cpu: bool) -> dict[str, Any]:
    """Bytes per second with writes of `size` bytes, from the reader's first byte to its last."""

    def serve(server: socket.socket) -> None:
        chunk = b"x" * size
        server.recv(1)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            server.sendall(chunk)

    def ask(client: socket.socket, _: Callable[[], float]) -> dict[str, float]:
        client.sendall(b"g")
        count, start = len(client.recv(READ_SIZE)), time.perf_counter()
        while data := client.recv(READ_SIZE):
            count += len(data)
        return {"rate": count / (time.perf_counter() - start)}

    return _talk(port, same_cpu, serve, ask)


def _talk(
    port: int,
    same_cpu: bool,
    serve: Callable[[socket.socket], None],
    ask: Callable[[socket.socket, Callable[[], float]], dict[str, float]],
) -> dict[str, Any]:
    """Runs `ask` in this process and `serve` in a child. `redirected`: TCP has sent nothing.

    `ask` can call what it is passed for the processor time of both so far, in seconds.
    """
    chosen = cpus(same_cpu)
    if chosen is None:
        return {"missing": True}
    # connected before the fork, so that neither waits for the other to get the CPU
    pair = new_pair(port)
    for end in (pair.client, pair.server):
        end.settimeout(PATIENCE_S)
    child = os.fork()
    if child == 0:
        try:
            os.sched_setaffinity(0, {chosen[1]})
            pair.client.close()
            serve(pair.server)
            pair.server.close()
        finally:
            os._exit(0)
    pair.server.close()
    clock = ~child << 3 | _CPUCLOCK_SCHED  # as clock_getcpuclockid(3) has it

    def used() -> float:
        return time.process_time() + time.clock_gettime(clock)

    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {chosen[0]})
    try:
        with pair.client as client:
            return {**ask(client, used), "redirected": sent_by_tcp(client) == 0}
    finally:
        os.sched_setaffinity(0, before)
        os.waitpid(child, 0)
