"""Figures of addresses and scale, not for `make test`; as root, with PYTHONPATH=.:tests

python3 -m kernel.pair.measure outside          what connections to other hosts pay, by `addresses`
python3 -m kernel.pair.measure memory           kernel memory of the maps, empty
python3 -m kernel.pair.measure connections N    N accelerated connections held and cycled
python3 -m kernel.pair.measure look N           a look for live connections among N sockets
"""

from __future__ import annotations

import itertools
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from multiprocessing.connection import Connection as Channel
from pathlib import Path

from sockredird.datapath.contents import RECENT_S
from sockredird.datapath.generation import Generation
from sockredird.datapath.join import Joiner
from sockredird.kernel import libbpf
from sockredird.kernel.libbpf import Fd
from sockredird.loader.shapes import ATTACHMENTS, PROGRAMS, map_shapes
from support import cgroups, processes, topology
from support.child import Child
from support.daemon.actor import Actor
from support.datapath import RETIRE_TIMEOUT_S, plan
from support.topology import Family, Network
from support.traffic import listen, set_linger

ROUNDS, CONNECTIONS, MEGABYTES = 18, 1500, 400
RETURN_1 = bytes.fromhex("b7000000010000009500000000000000")
PER_PROCESS = 9_500  # connections, of two files each


@contextmanager
def generation(cgroup: Path, **keywords: object) -> Iterator[Generation]:
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["mount", "-t", "bpf", "bpf", name], check=True)
        try:
            made = Generation.create(Path(name) / "ours", 1, plan(cgroup, **keywords))  # type: ignore[arg-type]
            yield made
            made.stop()
            assert made.members.retire(RETIRE_TIMEOUT_S, lambda walked: walked.entries == 0)
            made.remove()
        finally:
            subprocess.run(["umount", name], check=True)


@contextmanager
def two_cgroups() -> Iterator[tuple[Path, Path]]:
    inside, outside = cgroups.create(), cgroups.create()
    try:
        yield inside, outside
    finally:
        cgroups.remove(inside)
        cgroups.remove(outside)


# -- outside ---------------------------------------------------------------------------------------


def connects(network: Network, listener: socket.socket) -> float:
    """Connections per second, opened and closed one after the other."""
    started = time.perf_counter()
    with network.client.entered():
        for _ in range(CONNECTIONS):
            client = socket.socket()
            set_linger(client, 0)  # no TIME_WAIT, which would fill the ports
            client.connect((network.dialled, network.port))
            listener.accept()[0].close()
            client.close()
    return CONNECTIONS / (time.perf_counter() - started)


def streams(network: Network, listener: socket.socket) -> float:
    """MB/s of one connection; a child sends."""
    client = network.dial()
    server, _ = listener.accept()
    chunk, buffer = bytes(1 << 18), bytearray(1 << 18)

    def send(channel: Channel) -> None:
        for _ in range(MEGABYTES * 4):
            client.sendall(chunk)

    with Child(send) as sender:
        client.close()
        started = time.perf_counter()
        while server.recv_into(buffer):
            pass
        elapsed = time.perf_counter() - started
        assert sender.wait() == 0
    server.close()
    return MEGABYTES / elapsed


@contextmanager
def idle(cgroup: Path) -> Iterator[None]:
    """Programs attached that do nothing: what being called costs, whoever does it."""
    with ExitStack() as stack:
        directory = stack.enter_context(Fd(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)))
        for name, attach_type in ATTACHMENTS.items():
            kind = PROGRAMS[name].kind
            program = libbpf.load_program(kind, "idle", RETURN_1, attach_type)
            stack.enter_context(program)
            stack.enter_context(libbpf.create_cgroup_link(program, directory, attach_type))
        yield


@contextmanager
def attached(datapath: Generation, cgroup: Path) -> Iterator[None]:
    datapath.attach([cgroup])
    yield
    datapath.attach([])


def outside() -> None:
    """With the datapath, with idle programs, and with none attached, in turns."""
    for addresses in ("host", "any"):
        for direction in ("to", "from"):
            with (
                two_cgroups() as (inside, other),
                generation(inside, addresses=addresses) as datapath,
            ):
                processes.run(
                    _outside, datapath, inside, other, addresses, direction, timeout=600.0
                )


def _outside(
    datapath: Generation, inside: Path, other: Path, addresses: str, direction: str
) -> None:
    network = topology.veth(Family(4))
    cgroups.join(inside if direction == "from" else other)
    with network.listen() as listener:
        cgroups.join(other if direction == "from" else inside)
        for what in (connects, streams):
            print(f"{addresses:5} {direction:5} {what.__name__:9}", end="")
            _compare(datapath, inside, lambda what=what: what(network, listener))  # type: ignore[misc]
        assert datapath.members.walk().entries == 0
    cgroups.join(other)


def _compare(datapath: Generation, cgroup: Path, sample: Callable[[], float]) -> None:
    ways: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "none": nullcontext,
        "idle": lambda: idle(cgroup),
        "ours": lambda: attached(datapath, cgroup),
    }
    datapath.attach([])
    sample()  # warms up
    orders = itertools.cycle(itertools.permutations(ways))
    rounds = []
    for _ in range(ROUNDS):
        rates = {}
        for way in next(orders):
            with ways[way]():
                rates[way] = sample()
        rounds.append(rates)
    datapath.attach([cgroup])
    print(f"  {statistics.median(rates['none'] for rates in rounds):9.0f}", end="")
    for way in ("idle", "ours"):
        ratios = sorted(rates[way] / rates["none"] for rates in rounds)
        print(
            f"  {way} {statistics.median(ratios):.3f}"
            f" (quartiles {ratios[ROUNDS // 4]:.3f} {ratios[-1 - ROUNDS // 4]:.3f})",
            end="",
        )
    print()


# -- memory ----------------------------------------------------------------------------------------


def memory() -> None:
    """As bpftool accounts for each map; per-CPU maps for all possible CPUs."""
    for limit in (65_536, 1_000_000):
        with two_cgroups() as (inside, _), generation(inside, max_connections=limit) as datapath:
            total = 0
            for name in map_shapes(limit, resource.getpagesize()):
                total += memlock(datapath.directory / name)
            largest = {name: memlock(datapath.directory / name) for name in ("peers", "handshakes")}
            print(f"max_connections {limit}: {total / 1e6:.1f} MB, of which {largest}")


def memlock(pin: Path) -> int:
    with libbpf.open_pin(pin) as fd:
        lines = Path(f"/proc/self/fdinfo/{fd.number}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("memlock"))


# -- connections -----------------------------------------------------------------------------------


def _used() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = sum(int(fields[name].split()[0]) for name in ("MemFree", "Cached", "Buffers"))
    return (int(fields["MemTotal"].split()[0]) - free) * 1024


def connections(count: int) -> None:
    """By processes of PER_PROCESS each, as RLIMIT_NOFILE has it, that do each step together."""
    with two_cgroups() as (inside, other):
        plain = _held(None, count, other)
        with generation(inside, max_connections=max(count, 65_536)) as datapath:
            ours = _held(datapath, count, inside)
    for name, figures in (("TCP", plain), ("sockredird", ours)):
        print(f"{name}: {', '.join(f'{key} {value:.0f}' for key, value in figures.items())}")
    print(f"per connection {(ours['bytes'] - plain['bytes']) / count:.0f} bytes more than TCP's")


class Holder:
    """Keeps connections to an address of its own; each method runs in its process."""

    def __init__(self, address: str) -> None:
        self._listener = listen(address)
        self._pairs: list[tuple[socket.socket, socket.socket]] = []

    def open(self, count: int) -> None:
        for _ in range(count):
            client = socket.create_connection(self._listener.getsockname())
            self._pairs.append((client, self._listener.accept()[0]))

    def talk(self, count: int) -> None:
        """Over the last ones."""
        for client, server in self._pairs[-count:]:
            client.send(b"request")
            assert server.recv(100) == b"request"
            server.send(b"answer")
            assert client.recv(100) == b"answer"

    def close(self, count: int) -> None:
        """The first ones."""
        for client, server in self._pairs[:count]:
            set_linger(client, 0)
            client.close()
            server.close()
        del self._pairs[:count]


_holder: list[Holder] = []


def _start(address: str) -> None:
    _holder.append(Holder(address))


def _do(method: str, count: int) -> None:
    getattr(_holder[0], method)(count)


def _held(datapath: Generation | None, count: int, cgroup: Path) -> dict[str, float]:
    size = -(-count // -(-count // PER_PROCESS))
    actors = [Actor(cgroup) for _ in range(-(-count // size))]
    count = size * len(actors)

    def each(method: str, number: int) -> float:
        started = time.perf_counter()
        for actor in actors:
            actor.begin(_do, method, number)
        for actor in actors:
            actor.finish()
        return time.perf_counter() - started

    for number, actor in enumerate(actors, 1):
        actor.do(_start, f"127.0.1.{number}")
    try:
        used = _used()
        figures = {"connections": count, "opened per second": count / each("open", size)}
        each("talk", size)
        figures["bytes"] = _used() - used
        figures["bytes each"] = figures["bytes"] / count
        if datapath is None:
            return figures
        walked = datapath.members.walk()
        assert (walked.entries, walked.connections) == (2 * count, count), walked
        for _ in range(10):
            each("close", size // 10)
            each("open", size // 10)
            each("talk", size // 10)
        started = time.perf_counter()
        walked = datapath.members.walk()
        figures["walked in ms"] = 1000 * (time.perf_counter() - started)
        assert (walked.entries, walked.connections) == (2 * count, count), walked
        counters = {name: value for name, value in datapath.counters().items() if value}
        new = size // 10 * 10 * len(actors)
        assert counters == {
            "accelerated_connections": count + new,
            "redirected_messages": 2 * (count + new),
            "redirected_bytes": 13 * (count + new),
        }, counters
        each("close", size)
        return figures
    finally:
        for actor in actors:
            actor.close()


# -- look ------------------------------------------------------------------------------------------


def look(count: int) -> None:
    """Processor time of looks among so many sockets, idle, then with traffic, then joined."""
    with two_cgroups() as (inside, _):
        size = -(-count // 2 // -(-count // 2 // PER_PROCESS))
        with ExitStack() as stack:
            actors = [stack.enter_context(Actor(inside)) for _ in range(-(-count // 2 // size))]
            for number, actor in enumerate(actors, 1):
                actor.do(_start, f"127.0.1.{number}")
                for _ in range(10):
                    actor.do(_do, "open", size // 10)
            with generation(inside, max_connections=max(count, 65_536)) as datapath:
                _looks(datapath, actors, size // 10 * 10)


def _looks(datapath: Generation, actors: list[Actor], size: int) -> None:
    sockets = 2 * size * len(actors)

    def talk() -> None:
        for actor in actors:
            actor.begin(_do, "talk", size)
        for actor in actors:
            actor.finish()

    def show(what: str, seconds: float) -> None:
        print(f"{what:36} {1000 * seconds:7.1f} ms, {1e6 * seconds / sockets:5.2f} us per socket")

    print(f"{sockets} sockets")
    time.sleep(RECENT_S + 1)
    joiner = Joiner()
    for what in ("idle", "with traffic", "with traffic, joining"):
        if what != "idle":
            talk()
        for _ in range(1 if what.endswith("joining") else 3):
            began = time.thread_time()
            found = sum(1 for _ in libbpf.iterate(datapath._pins["candidates"]))
            show(f"{what}: the kernel's part", time.thread_time() - began)
        looked = joiner.look(datapath, "loopback")
        show(f"{what}: a look", looked.seconds)
        print(f"  {looked}, {found} chunks")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["outside"]:
            outside()
        case ["memory"]:
            memory()
        case ["connections", number]:
            connections(int(number))
        case ["look", number]:
            look(int(number))
        case _:
            sys.exit(__doc__)
