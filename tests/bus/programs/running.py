"""Real programs, whose clients compare every byte; one at a time, or all of them at once."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench import servers
from bench.datapaths import Datapath, end, spawn
from bus.programs import clients
from support.daemon.client import Client
from support.daemon.host import Host
from support.waiting import eventually

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Load:
    connections: int  # of clients, to each program
    pause: float  # seconds between two questions of a client


@dataclass(frozen=True)
class Traffic:
    port: int  # that clients are connected to
    upstream: int | None  # of the server behind it, to which it keeps a connection or more
    finish: Callable[[], int]  # ends the traffic; returns the number of answers
    # of clients.py, where it asks: clients.hold() and release() there
    hold: Callable[[], list[clients.Counted]] = list
    release: Callable[[], None] = lambda: None


Program = Callable[[Host, Path, Load], AbstractContextManager[Traffic]]


def needs(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed: make programs")


def place(host: Host) -> Datapath:
    return Datapath("programs", host.cgroup, host.cgroup)


@contextmanager
def asking(
    host: Host, load: Load, kind: type, port: int, upstream: int | None = None
) -> Iterator[Traffic]:
    actor = host.actor()
    actor.do(clients.start, kind, port, load.connections, load.pause)
    finish, hold, release = (
        partial(actor.do, function) for function in (clients.finish, clients.hold, clients.release)
    )
    yield Traffic(port, upstream, finish, hold, release)


@contextmanager
def redis(host: Host, scratch: Path, load: Load) -> Iterator[Traffic]:
    needs("redis-server")
    with (
        servers.redis(place(host), scratch) as address,
        asking(host, load, clients.Redis, address.port) as traffic,
    ):
        yield traffic


@contextmanager
def memcached(host: Host, scratch: Path, load: Load) -> Iterator[Traffic]:
    needs("memcached")
    with (
        servers.memcached(place(host), scratch) as address,
        asking(host, load, clients.Memcached, address.port) as traffic,
    ):
        yield traffic


@contextmanager
def _web(host: Host, scratch: Path) -> Iterator[servers.Address]:
    needs("nginx")
    scratch.mkdir(exist_ok=True)
    with servers.nginx(place(host), scratch) as address:
        (scratch / "nginx-web" / "www" / "index.html").write_bytes(clients.PAGE)
        yield address


@contextmanager
def nginx(host: Host, scratch: Path, load: Load) -> Iterator[Traffic]:
    """A proxy that keeps its connections to the server behind it."""
    with (
        _web(host, scratch) as app,
        servers.nginx(place(host), scratch, app=app) as proxy,
        asking(host, load, clients.Http, proxy.port, app.port) as traffic,
    ):
        yield traffic


@contextmanager
def haproxy(host: Host, scratch: Path, load: Load) -> Iterator[Traffic]:
    needs("haproxy")
    with (
        _web(host, scratch / "behind-haproxy") as app,
        servers.haproxy(place(host), scratch, app) as proxy,
        asking(host, load, clients.Http, proxy.port, app.port) as traffic,
    ):
        yield traffic


class _Psql:
    """psql, and so libpq; one question after the other, on a pipe."""

    def __init__(self, host: Host, port: int) -> None:
        where = ("-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "postgres")
        self.process = spawn(["psql", "-qAtX", *where], host.cgroup)
        self.number = 0
        self.ask()  # it is connected

    def ask(self) -> None:
        self.number += 1
        size = (1, 100, 5000)[self.number % 3]
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"SELECT {self.number} || repeat('{self.number % 10}', {size});\n")
        self.process.stdin.flush()
        wanted = f"{self.number}{str(self.number % 10) * size}\n"
        found = self.process.stdout.readline()
        assert found == wanted, (found[:80], wanted[:80])


@contextmanager
def _psqls(host: Host, load: Load, port: int, upstream: int | None = None) -> Iterator[Traffic]:
    asking = [_Psql(host, port) for _ in range(load.connections)]
    pump = clients.Pump(asking, load.pause)
    pump.start()
    try:
        yield Traffic(port, upstream, pump.finish)
    finally:
        pump.ending.set()
        for one in asking:
            end(one.process)


@contextmanager
def postgresql(host: Host, scratch: Path, load: Load) -> Iterator[Traffic]:
    needs("psql", "pg_ctlcluster")
    with (
        servers.Postgres(scratch).serving(place(host)) as address,
        _psqls(host, load, address.port) as traffic,
    ):
        yield traffic


@contextmanager
def pgbouncer(host: Host, scratch: Path, load: Load) -> Iterator[Traffic]:
    needs("psql", "pg_ctlcluster", "pgbouncer")
    scratch = scratch / "behind-pgbouncer"
    scratch.mkdir()
    with (
        servers.Postgres(scratch).serving(place(host)) as server,
        servers.pgbouncer(place(host), scratch, server, pool=2) as proxy,
        _psqls(host, load, proxy.port, server.port) as traffic,
    ):
        yield traffic


@contextmanager
def _echo(host: Host, load: Load, command: list[str]) -> Iterator[Traffic]:
    server = spawn([*command, "serve"], host.cgroup)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    arguments = map(str, (port, load.connections, int(load.pause * 1000)))
    client = spawn([*command, "ask", *arguments], host.cgroup)

    def finish() -> int:
        # not by the end of the pipe, which a child that was forked later has open, too
        output, errors = client.communicate("end\n", timeout=60)
        assert client.returncode == 0, errors
        return int(output)

    try:
        yield Traffic(port, None, finish)
    finally:
        end(client)
        end(server)


@contextmanager
def node(host: Host, _scratch: Path, load: Load) -> Iterator[Traffic]:
    needs("node")
    with _echo(host, load, ["node", str(HERE / "echo.js")]) as traffic:
        yield traffic


@contextmanager
def go(host: Host, scratch: Path, load: Load) -> Iterator[Traffic]:
    needs("go")
    program = scratch / "echo"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOCACHE": str(scratch / "cache")}
    command = ["go", "build", "-o", str(program), str(HERE / "echo.go")]
    subprocess.run(command, env=environment, check=True)
    with _echo(host, load, [str(program)]) as traffic:
        yield traffic


ALL: tuple[Program, ...] = (redis, memcached, nginx, haproxy, postgresql, pgbouncer, node, go)


@contextmanager
def all_at_once(host: Host, scratch: Path, load: Load) -> Iterator[dict[str, Traffic]]:
    """By the program's name."""
    with ExitStack() as stack:
        yield {
            program.__name__: stack.enter_context(program(host, scratch, load)) for program in ALL
        }


Ends = frozenset[str]  # both addresses of a connection


def ends_of(connection: dict[str, Any]) -> Ends:
    return frozenset((connection["client"], connection["server"]))


def accelerated(connections: list[dict[str, Any]]) -> set[Ends]:
    """Those of what Connections returns that stay, and redirect in both directions."""
    return {
        ends_of(c)
        for c in connections
        if not c["leaving"] and c.get("client_sent_messages") and c.get("server_sent_messages")
    }


def counted(client: Client, traffic: list[Traffic]) -> int:
    """How many connections have the very counts that their clients have, which rest meanwhile."""
    counts = [count for one in traffic for count in one.hold()]
    shown = {ends_of(c): c for c in client.call("Connections", "u", 0)}
    for one in traffic:
        one.release()
    for ends, *sent in counts:
        c = shown[frozenset(ends)]
        found = [c[f"{side}_sent_bytes"] + c[f"{side}_tcp_bytes"] for side in ("client", "server")]
        assert found == sent, c
    return len(counts)


def connected(traffic: Sequence[Traffic], load: Load) -> set[Ends]:
    """The connections of the clients, as the kernel lists them."""
    ports = {one.port for one in traffic}
    count = len(traffic) * load.connections
    eventually(lambda: len(_established(ports)) == count, f"{count} connections are established")
    return _established(ports)


def _established(ports: set[int]) -> set[Ends]:
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, state = line.split()[1:4]
        if state == "01" and int(remote.partition(":")[2], 16) in ports:
            found.add(frozenset((_named(local), _named(remote))))
    return found


def _named(text: str) -> str:
    """As sockredirctl writes it; `text` is as in /proc/net/tcp, on a little-endian machine."""
    address, _, port = text.partition(":")
    return f"{socket.inet_ntoa(bytes.fromhex(address)[::-1])}:{int(port, 16)}"
