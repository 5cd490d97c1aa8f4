"""A datapath for tests: what to create, how to take it down, and which one the traffic is on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sockredird.datapath.generation import Generation
from sockredird.datapath.plan import Plan
from sockredird.kernel import libbpf
from sockredird.loader.header import record
from support.emulated import PATIENCE

RETIRE_TIMEOUT_S = 10.0 * PATIENCE


def plan(
    cgroup: Path,
    *,
    excluded_ports: frozenset[int] = frozenset(),
    addresses: str = "loopback",
    exclude_cgroups: tuple[str, ...] = (),
    max_connections: int = 65536,
    window_bytes: int = 4 << 20,
    learn: bool = True,
    blocking_readers: str = "accelerate",
    memory_bytes: int = 0,
    revalidate_s: float = 10.0,
) -> Plan:
    """A plan for one cgroup. Many tests read by recv() without a poll()."""
    return Plan(
        scope={},
        cgroups=(cgroup,),
        ports=frozenset(range(65536)) - excluded_ports,
        addresses=addresses,
        exclude_cgroups=exclude_cgroups,
        max_connections=max_connections,
        window_bytes=window_bytes,
        learn=learn,
        blocking_readers=blocking_readers,
        memory_bytes=memory_bytes,
        revalidate_s=revalidate_s,
    )


def settings_of(generation: Generation) -> Any:
    """struct settings, as the programs have it."""
    settings = record("settings")
    return settings.unpack(libbpf.lookup(generation._pins["settings"], bytes(4), settings.size))


def tear_down(directory: Path) -> None:
    # the test's child may have stopped it or moved its epoch on: the pins know, our object does not
    generation = Generation.adopt(directory)
    generation.stop()
    empty = generation.members.retire(RETIRE_TIMEOUT_S, lambda walked: walked.entries == 0)
    assert empty, f"sockets stay on the sockhash: {generation.members.walk()}"
    generation.remove()


@dataclass(frozen=True)
class Datapath:
    """What the traffic of an oracle-checked test runs over."""

    cgroup: Path
    generation: Generation | None  # None: the textbook, which has to be seen failing

    @property
    def is_textbook(self) -> bool:
        return self.generation is None
