"""Bench: what acceleration gains on this host, measured in a private cgroup.

A generation that is not live accelerates one port there, and leaves another to TCP. Live
generations ignore the cgroup. The new one is not pinned, so it ends with the daemon.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sockredird.check import sandbox
from sockredird.check.kernel_check import Generations, InWorker, leaving_alone
from sockredird.check.sandbox import Sandbox
from sockredird.datapath.generation import Generation
from sockredird.datapath.plan import Plan
from sockredird.errors import Internal, InvalidConfig

ROUNDS = 9  # their extremes enclose the median with 99.6 % confidence
SECONDS = 0.05  # of one measurement
TRIES = 3  # on a busy host a message of an accelerated connection may go by TCP
WINDOW_BYTES = 4 << 20
SOFTIRQS_APART = 0.85  # below it, the kernel counts the softirqs of plain TCP apart
_MAX_CONNECTIONS = 1024


@dataclass(frozen=True)
class Work:
    title: str
    order: str
    size: int
    same_cpu: bool


WORKS = (
    Work("round trip, 64 B, one CPU", "round_trips", 64, True),
    Work("round trip, 64 B, two CPUs", "round_trips", 64, False),
    Work("round trip, 8 KiB, one CPU", "round_trips", 8192, True),
    Work("stream, writes of 1 KiB", "stream", 1024, False),
    Work("stream, writes of 64 KiB", "stream", 65536, False),
)


@dataclass(frozen=True)
class Measured:
    """What one round found of a work."""

    rate: float  # round trips or bytes per second
    cpu: float = 0.0  # seconds of processor time of a round trip; 0 for a stream


@dataclass(frozen=True)
class Row:
    """Medians of rounds, in microseconds of a round trip or in MB/s.

    `ratio` says how many times as fast acceleration is. Its median is between `low` and `high`.
    `plain_cpu` and `accelerated_cpu` are the processor time that a round trip takes at both ends
    together, in microseconds; 0 for a stream.
    """

    work: str
    unit: str
    plain: float
    accelerated: float
    ratio: float
    low: float
    high: float
    plain_cpu: float
    accelerated_cpu: float

    @classmethod
    def of(cls, work: Work, plain: list[Measured], accelerated: list[Measured]) -> Row:
        """The row of a work, from what was measured in each round."""
        ratios = [a.rate / b.rate for a, b in zip(accelerated, plain, strict=True)]
        trips = work.order == "round_trips"
        rates = [statistics.median(m.rate for m in kind) for kind in (plain, accelerated)]
        cpu = _cpu(work, plain, accelerated)
        shown = [1e6 / rate if trips else rate / 1e6 for rate in rates]
        return cls(
            work=work.title,
            unit="us" if trips else "MB/s",
            plain=shown[0],
            accelerated=shown[1],
            ratio=statistics.median(ratios),
            low=min(ratios),
            high=max(ratios),
            plain_cpu=1e6 * cpu[0],
            accelerated_cpu=1e6 * cpu[1],
        )


def _cpu(work: Work, plain: list[Measured], accelerated: list[Measured]) -> tuple[float, float]:
    """Seconds of processor time of a round trip, plain and accelerated.

    Other programs on the same CPU make a round trip longer, but not its processor time. A kernel
    with CONFIG_IRQ_TIME_ACCOUNTING leaves the softirqs of plain TCP out of that. This shows where
    both ends share a CPU, and one of them is always running: the processor time of plain TCP is a
    smaller part of the time that passes. Then the time that passes is taken.
    """
    both = list(zip(plain, accelerated, strict=True))
    if work.same_cpu and all(a.cpu for a in accelerated):
        part = statistics.median(p.cpu * p.rate / (a.cpu * a.rate) for p, a in both)
        if part < SOFTIRQS_APART:
            return (
                statistics.median(1 / p.rate for p, _ in both),
                statistics.median(1 / a.rate for _, a in both),
            )
    return statistics.median(p.cpu for p, _ in both), statistics.median(a.cpu for _, a in both)


def run(
    root: Path, port: int, generations: Generations, in_worker: InWorker[Any]
) -> list[dict[str, Any]]:
    """A row for each work. A `port` of 0 means any. It takes some seconds.

    Each round runs in the worker, which does nothing else for half a second. Raises InvalidConfig
    if the port cannot be used, Internal if nothing can be measured here, and what
    Generation.create() raises.
    """
    plan = Plan(
        scope={},
        cgroups=(),
        ports=frozenset(),
        max_connections=_MAX_CONNECTIONS,
        window_bytes=WINDOW_BYTES,
    )
    found: dict[Work, tuple[list[Measured], list[Measured]]] = {}
    with Generation.unpinned(root, plan) as candidate:
        for number in range(ROUNDS):
            reverse = number % 2 == 1

            def one_round(reverse: bool = reverse) -> list[tuple[Work, Measured, Measured]]:
                return list(_round(root, candidate, port, generations(), reverse))

            for work, plain, accelerated in in_worker(one_round):
                both = found.setdefault(work, ([], []))
                both[0].append(plain)
                both[1].append(accelerated)
    return [asdict(Row.of(work, *both)) for work, both in found.items()]


def _round(
    root: Path, candidate: Generation, port: int, generations: list[Generation], reverse: bool
) -> Iterator[tuple[Work, Measured, Measured]]:
    """What is found of each work, plain and accelerated, in this order or the reverse."""
    with ExitStack() as stack:
        box = stack.enter_context(sandbox.opened(root))
        ports = box.order("ports", wanted=port)
        if "error" in ports:
            raise InvalidConfig(f"cannot listen on port {port}: {ports['error']}")
        stack.enter_context(leaving_alone(generations, box.cgroup))
        stack.enter_context(candidate.tried_in(box.cgroup, ports["accelerated"], WINDOW_BYTES))
        for work in WORKS:
            found = {}
            for kind in sorted(("plain", "accelerated"), reverse=reverse):
                answer = _measure_as(kind, box, work, ports[kind])
                if "missing" in answer:
                    break
                found[kind] = Measured(answer["rate"], answer.get("cpu", 0.0))
            if len(found) == 2:
                yield work, found["plain"], found["accelerated"]


def _measure_as(kind: str, box: Sandbox, work: Work, port: int) -> dict[str, Any]:
    """Of a connection that was plain, or accelerated. Raises Internal if none was after TRIES."""
    for _ in range(TRIES):
        answer = _measure(box, work, port)
        if "missing" in answer or work.order != "round_trips":
            return answer
        if answer["redirected"] == (kind == "accelerated"):
            return answer
    raise Internal(
        f"a connection that should be {kind} was not: try again, or run sockredirctl check"
    )


def _measure(box: Sandbox, work: Work, port: int) -> dict[str, Any]:
    answer = box.order(
        work.order, port=port, size=work.size, seconds=SECONDS, same_cpu=work.same_cpu
    )
    if "error" in answer or "not_tried" in answer:
        raise Internal(f"{work.title}: {answer.get('error') or answer['not_tried']}")
    return answer
