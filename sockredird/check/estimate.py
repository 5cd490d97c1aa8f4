"""Estimate: the processor time that acceleration saves, or would save, on this host's connections.

It is the rate of their messages, times what bench measured that one takes less when redirected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sockredird.check.benchmark import WORKS
from sockredird.check.kernel_check import Generations, InWorker
from sockredird.kernel import sockdiag
from sockredird.kernel.sockdiag import Namespace, Socket
from sockredird.loader.records import flow_key
from sockredird.observe import listing

WATCH_S = 1.0  # more than half a second, which the rates of the listing need
LARGEST_BYTES = 16 << 10  # a mean size above this is that of a stream, which gains nothing

Direction = tuple[float, float]  # messages and bytes per second that one end sends
Connection = Sequence[Direction]


@dataclass(frozen=True)
class Seen:
    """The connections that carried something while they were watched."""

    tcp: list[Connection] | None  # by TCP, and not accelerated; None: sock_diag did not answer
    accelerated: list[Connection] = field(default_factory=list)  # what was redirected


@dataclass(frozen=True)
class Estimate:
    """It is for connections together, without messages whose mean size is above LARGEST_BYTES."""

    connections: int  # with messages that count
    messages_per_second: int
    message_bytes: int  # mean
    saved_cpu_seconds: float  # of processor time, per second; negative if acceleration is slower
    large_connections: int  # with none but messages that are too large


def watch(generations: Generations, in_worker: InWorker[Any]) -> Seen:
    """Looks twice, WATCH_S apart, at the TCP connections that have both ends on this host.

    Plain ones are those of the daemon's network namespace, by sock_diag(7); accelerated ones are
    all. The worker reads the accelerated ones, which takes no longer than a list of them.
    """

    def accelerated() -> list[tuple[set[bytes], Connection]]:
        return list(listing.rates(generations()))

    in_worker(accelerated)  # the rates begin here
    began, before = time.monotonic(), _sockets()
    time.sleep(WATCH_S)
    seconds, after = time.monotonic() - began, _sockets()
    members = in_worker(accelerated)
    busy = [rates for _, rates in members if any(messages for messages, _ in rates)]
    if before is None or after is None:
        return Seen(None, busy)
    flows = set().union(*(found for found, _ in members))
    return Seen(plain(before, after, seconds, flows), busy)


def _sockets() -> Namespace | None:
    try:
        return sockdiag.look()
    except OSError:  # a kernel without CONFIG_INET_DIAG
        return None


def plain(
    before: Namespace, after: Namespace, seconds: float, accelerated: set[bytes]
) -> list[Connection]:
    """The connections that carried data by TCP between two looks that were `seconds` apart.

    Both ends have to be in the namespace, and the flow not among those that are `accelerated`. A
    socket with a ULP, such as kTLS, cannot be. A message is taken to be a segment with data, as the
    receiver counts them (tcp_segs_in(), include/net/tcp.h). Over loopback, TCP sends a segment for
    each send(2), but joins small ones that have to wait, and splits those above 64 KiB. So small
    messages may be more than are counted, and large ones fewer.
    """
    old = {s.cookie: s for s in before.sockets if not s.listening}
    new = {(s.local, s.remote): s for s in after.sockets if not s.listening}
    found: list[Connection] = []
    for (local, remote), one in new.items():
        other = new.get((remote, local))
        if other is None or (local.packed, local.port) >= (remote.packed, remote.port):
            continue  # it is not on this host, or is met from its other end
        ends = one, other
        if any(end.cookie not in old or end.ulp for end in ends):
            continue
        rates = [_received(old[end.cookie], end, seconds) for end in ends]
        if any(messages for messages, _ in rates) and not _flows(ends, after) & accelerated:
            found.append(rates)
    return found


def _flows(ends: tuple[Socket, Socket], namespace: Namespace) -> set[bytes]:
    """struct flow for either end as the client, since sock_diag does not tell which one is."""
    one, other = ((end.local.packed, end.local.port) for end in ends)
    return {flow_key(one, other, namespace.cookie), flow_key(other, one, namespace.cookie)}


def _received(before: Socket, after: Socket, seconds: float) -> Direction:
    segments = (after.received_segments - before.received_segments) & 0xFFFFFFFF
    return segments / seconds, (after.received_bytes - before.received_bytes) / seconds


def of(rows: list[dict[str, Any]], seen: Seen) -> dict[str, dict[str, Any]]:
    """An Estimate by key: `tcp` of what would be saved, `accelerated` of what is saved.

    `rows` are those of benchmark.run(). A key is missing if nothing is known for it.
    """
    saved = saved_per_message(rows)
    if saved is None:
        return {}
    kinds = {"tcp": seen.tcp, "accelerated": seen.accelerated}
    return {
        kind: asdict(summed(connections, saved))
        for kind, connections in kinds.items()
        if connections is not None
    }


def saved_per_message(rows: list[dict[str, Any]]) -> Callable[[float], float] | None:
    """Seconds of processor time that a message of a size in bytes takes less when redirected.

    They come from the round trips on one CPU; a round trip is two messages. The time that Python
    takes is in both kinds, and cancels out. Between the sizes that were measured, they are
    interpolated. The result is None if no such round trip was measured.
    """
    measured = {row["work"]: row for row in rows}
    points: list[tuple[int, float]] = sorted(
        (work.size, (row["plain_cpu"] - row["accelerated_cpu"]) / 2 * 1e-6)
        for work in WORKS
        if work.order == "round_trips" and work.same_cpu and (row := measured.get(work.title))
    )
    if not points:
        return None

    def saved(size: float) -> float:
        (low, least), (high, most) = points[0], points[-1]
        if high == low:
            return least
        part = (min(max(size, low), high) - low) / (high - low)
        return least + part * (most - least)

    return saved


def summed(connections: Iterable[Connection], saved: Callable[[float], float]) -> Estimate:
    """The estimate for some connections; `saved` is what saved_per_message() returned."""
    counted = large = 0
    messages, size, seconds = 0.0, 0.0, 0.0
    for connection in connections:
        carrying = [(count, length) for count, length in connection if count]
        small = [(count, length) for count, length in carrying if length <= LARGEST_BYTES * count]
        counted += bool(small)
        large += bool(carrying) and not small
        messages += sum(count for count, _ in small)
        size += sum(length for _, length in small)
        seconds += sum(count * saved(length / count) for count, length in small)
    return Estimate(
        connections=counted,
        messages_per_second=round(messages),
        message_bytes=round(size / messages) if messages else 0,
        saved_cpu_seconds=seconds,
        large_connections=large,
    )
