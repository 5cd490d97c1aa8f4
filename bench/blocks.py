"""Short connections, measured in blocks of some to servers and clients that stay.

Other workloads start their processes anew for each round, on CPUs of their own. What sockredird
costs a connection that it leaves alone is a hundredth, and that is lost there in how a CPU fell
asleep and where memory happened to be. So here all processes are there before the first round, on
one CPU, a round is some milliseconds of each datapath, and there are many. Plain TCP is there
twice, which says how much a ratio is worth.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from subprocess import Popen

from bench import servers
from bench.datapaths import AGAIN, OURS, TCP, Datapath, cpu_seconds, end, spawn
from bench.host import Host
from bench.servers import Address
from bench.workload import Sample, Workload

BLOCKS = "A connection per request, in blocks"
BLOCK, ROUNDS = 100, 1001
CPU, OTHER_CPU = frozenset({0}), frozenset({1})
# So many that it is known what acceleration does for the listener, and until that is written down
WARM_UP, SETTLE_S = 3000, 1.5
WANTED = {f"{OURS}/{TCP}": 0.98}

Serve = Callable[[Datapath, Path], AbstractContextManager[Address]]


@contextmanager
def _on(cpus: frozenset[int]) -> Iterator[None]:
    """Processes that are started meanwhile stay there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Blocks:
    """A server and a client for each datapath, from the first block that it runs to close()."""

    def __init__(self, host: Host, client: list[str], serve: Serve, *, delay: bool = False) -> None:
        """`client` is the command line up to the port; `delay`: without TCP_NODELAY."""
        self._host = host
        self._client = client
        self._serve = serve
        self._more = ["delay"] if delay else []
        self._stack = ExitStack()
        self._clients: dict[str, Popen[str]] = {}

    def run(self, path: Datapath) -> Sample:
        if path.name not in self._clients:
            self._begin(path)
        before = cpu_seconds(path.server)
        with _on(OTHER_CPU):
            seconds, client_cpu = self._block(path, BLOCK)
        return Sample(
            rate=BLOCK / seconds,
            server_cpu_us=(cpu_seconds(path.server) - before) / BLOCK * 1e6,
            client_cpu_us=client_cpu / BLOCK * 1e6,
        )

    def close(self) -> None:
        self._stack.close()
        self._clients.clear()

    def _begin(self, path: Datapath) -> None:
        scratch = self._host.scratch / f"blocks-{path.name.replace(' ', '-')}"
        scratch.mkdir(exist_ok=True)
        with _on(CPU):
            address = self._stack.enter_context(self._serve(path, scratch))
        client = spawn([*self._client, str(address.port), *self._more], path.client, CPU)
        self._stack.callback(end, client)
        self._clients[path.name] = client
        self._block(path, WARM_UP)
        time.sleep(SETTLE_S)
        self._block(path, BLOCK)

    def _block(self, path: Datapath, count: int) -> tuple[float, float]:
        """Seconds on the clock, and of the client's CPU time."""
        client = self._clients[path.name]
        assert client.stdin is not None and client.stdout is not None
        client.stdin.write(f"{count}\n")
        client.stdin.flush()
        line = client.stdout.readline()
        if not line:
            _, errors = client.communicate(timeout=60)
            raise RuntimeError(f"{client.args!r}: {errors.strip()}")
        result = json.loads(line)
        return result["seconds"], result["cpu_seconds"]


@contextmanager
def _echo(
    directory: Path, path: Datapath, scratch: Path, *, words: tuple[str, ...] = ()
) -> Iterator[Address]:
    command = [str(directory / "crr"), "server", "0", "64", "0", *words]
    process = spawn(command, path.server)
    try:
        assert process.stdout is not None
        yield Address(int(process.stdout.readline()), scratch)
    finally:
        end(process)


@contextmanager
def _proxy(path: Datapath, scratch: Path) -> Iterator[Address]:
    with (
        servers.nginx(path, scratch) as app,
        servers.nginx(path, scratch, app=app, keep=False) as address,
    ):
        yield address


def workloads(host: Host, directory: Path) -> list[Workload]:
    """`directory` has the load generators."""
    program = str(directory / "blocks")
    echo, http = [program, "echo"], [program, "http"]
    serve = partial(_echo, directory)
    delayed = partial(serve, words=("delay",))
    nginx = partial(servers.nginx, deferred=True)
    there_and_back = "connect, 64 B there and back, close"
    kinds = (
        ("echo", there_and_back, True, Blocks(host, echo, delayed, delay=True)),
        ("nodelay", f"{there_and_back}, TCP_NODELAY at both ends", True, Blocks(host, echo, serve)),
        ("proxy", "nginx as a proxy, a connection per request", True, Blocks(host, http, _proxy)),
        ("nginx", "nginx, TCP_DEFER_ACCEPT", False, Blocks(host, http, nginx)),
        ("apache", "Apache, TCP_DEFER_ACCEPT", False, Blocks(host, http, servers.apache)),
    )
    return [
        Workload(
            f"blocks-{name}",
            BLOCKS,
            title,
            "connections/s",
            "connection",
            blocks.run,
            datapaths=(TCP, AGAIN, OURS),
            rounds=ROUNDS,
            targets=WANTED,
            accelerated=accelerated,  # until it is known that it does not pay
            covered=False,
            close=blocks.close,
        )
        for name, title, accelerated, blocks in kinds
    ]
