"""What a workload is, and how one is run: rounds that visit every datapath, in changing order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from bench import coverage
from bench.datapaths import (
    AGAIN,
    EXCLUDED,
    JOINED,
    MESH,
    OURS,
    OUTSIDE,
    RETIRED,
    TCP,
    TEXTBOOK,
    TRACED,
    UNIX,
    Datapath,
    of_base,
)
from bench.host import Host
from bench.spread import spread
from support.topology import Family, Network

SAME_CORE = (0, 0)
TWO_CORES = (1, 0)  # CPUs of server and client
EVERYWHERE = (TCP, OURS, TEXTBOOK, UNIX)
AGAINST_BASE = 0.98  # the smallest ratio to another checkout that is wanted


@dataclass(frozen=True)
class Sample:
    """One run over one datapath. `rate` is better when higher; CPU time is per operation."""

    rate: float
    server_cpu_us: float
    client_cpu_us: float
    more: dict[str, float] = field(default_factory=dict)  # latencies, us

    def figures(self) -> dict[str, float]:
        cpu = {"server_cpu_us": self.server_cpu_us, "client_cpu_us": self.client_cpu_us}
        return {"rate": self.rate, **cpu, **self.more}


@dataclass(frozen=True)
class Workload:
    name: str
    group: str
    title: str
    unit: str  # of the rate
    operation: str  # that CPU time is given for
    run: Callable[[Datapath], Sample]
    datapaths: tuple[str, ...] = EVERYWHERE
    rounds: int = 15
    targets: dict[str, float] = field(default_factory=dict)  # "a/b" -> smallest ratio wanted
    quick: bool = False
    accelerated: bool = True  # whether OURS is expected to redirect
    covered: bool = True  # whether all connections of a run begin and end in it
    scope: dict[str, str] = field(default_factory=dict)  # keys of [scope] that it needs
    close: Callable[[], None] = lambda: None  # after the last round
    cpus: tuple[int, int] | None = None  # those of servers and clients; None: the scheduler chooses
    network: Callable[[Family], Network] | None = None  # None: the loopback of the host


def ratio_names(datapaths: Sequence[str]) -> list[str]:
    """What is compared: everything with plain TCP, and ours with what it could be instead."""
    names = [f"{name}/{TCP}" for name in datapaths if name != TCP]
    if OURS in datapaths:
        names += [f"{OURS}/{name}" for name in (TEXTBOOK, MESH, UNIX) if name in datapaths]
    names += [f"{name}/{OURS}" for name in (TRACED, JOINED) if name in datapaths]
    names += [f"{name}/{of_base(name)}" for name in datapaths if of_base(name) in datapaths]
    return names


def visited(workload: Workload, *, null: bool, base: bool) -> list[str]:
    """The names of its datapaths, in a run without acceleration, or beside another checkout."""
    names = list(workload.datapaths)
    if null:
        return [TCP, AGAIN, *(name for name in names if name not in (TCP, AGAIN, UNIX))]
    if base:
        ours = [n for n in names if n in (OURS, EXCLUDED, OUTSIDE, RETIRED, TRACED)]
        return [TCP, *ours, *map(of_base, ours)]
    return names


def order(datapaths: Sequence[str], number: int) -> list[str]:
    """Each datapath is first, last, before and after each other equally often."""
    shift = number // 2 % len(datapaths)
    turned = [*datapaths[shift:], *datapaths[:shift]]
    return turned[::-1] if number % 2 else turned


def measure(workload: Workload, host: Host, rounds: int) -> dict[str, Any]:
    """The workload's entry in the results: medians per datapath, ratios of rounds, all rounds."""
    names = visited(workload, null=host.null, base=host.base is not None)
    for accelerator in host.accelerators:
        accelerator.forget()
    before = host.redirected()
    samples: list[dict[str, dict[str, float]]] = []
    try:
        with host.enabled_with(workload.scope), _placed(workload) as place:
            paths = {name: place(host.datapaths[name]) for name in names}
            for number in range(rounds):
                samples.append({n: _run(workload, paths[n]) for n in order(names, number)})
            redirected = host.redirected() - before
            covered = _coverage(workload, host, paths[OURS]) if OURS in names else None
    finally:
        workload.close()
    if {OURS, JOINED} & set(names) and workload.accelerated != bool(redirected) and not host.null:
        raise RuntimeError(f"{workload.name}: {redirected} messages were redirected")
    return {
        "name": workload.name,
        "group": workload.group,
        "title": workload.title,
        "unit": workload.unit,
        "operation": workload.operation,
        "redirected_messages": redirected,
        "coverage": covered,
        "datapaths": {name: _medians([sample[name] for sample in samples]) for name in names},
        "ratios": {name: asdict(spread(ratios(samples, name))) for name in ratio_names(names)},
        "targets": workload.targets
        | {name: AGAINST_BASE for name in ratio_names(names) if f"/{of_base('')}" in name},
        "rounds": samples,
    }


@contextmanager
def _placed(workload: Workload) -> Iterator[Callable[[Datapath], Datapath]]:
    """Puts a datapath on the workload's CPUs and its network, which is there inside the block."""
    found: dict[str, Any] = {}
    if workload.cpus:
        server, client = workload.cpus
        found |= {"server_cpus": frozenset({server}), "client_cpus": frozenset({client})}
    with ExitStack() as stack:
        if workload.network:
            found["network"] = network = workload.network(Family(4))
            for namespace in (network.server, network.client):
                stack.callback(os.close, namespace.fd)
        yield lambda path: replace(path, **found)


def _run(workload: Workload, path: Datapath) -> dict[str, float]:
    with path.around():
        return workload.run(path).figures()


def _coverage(workload: Workload, host: Host, path: Datapath) -> float | None:
    if host.null or host.base or not workload.covered:
        return None
    return coverage.measure(host, partial(workload.run, path))


def ratios(samples: Sequence[dict[str, dict[str, float]]], name: str) -> list[float]:
    """Of each round: drift of the machine from round to round is not in them."""
    ours, other = name.split("/")
    return [sample[ours]["rate"] / sample[other]["rate"] for sample in samples]


def _medians(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: spread([sample[key] for sample in samples]).median for key in samples[0]}
