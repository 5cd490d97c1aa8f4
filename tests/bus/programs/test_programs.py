"""Connections of real programs that are older than Enable are accelerated, and their bytes right.

`make programs` installs those that `make test` does not need; a test whose program is not there is
skipped.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import servers
from bench.datapaths import Datapath, end, spawn
from bus.programs import clients
from support.daemon.client import Client
from support.daemon.host import Host
from support.emulated import PATIENCE
from support.traffic import free_port
from support.waiting import eventually

COUNT = 8
WITHIN_S = 3.0
HERE = Path(__file__).parent
# The ports of what has to be accelerated, how many connections each has at least, and what ends the
# traffic and gives the number of answers.
Traffic = tuple[dict[int, int], Callable[[], int]]
pytestmark = pytest.mark.parametrize(
    "host", [{"scope": {"blocking_readers": "tcp"}}], indirect=True, ids=["tcp"]
)


def needs(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed: make programs")


def place(host: Host) -> Datapath:
    return Datapath("programs", host.cgroup, host.cgroup)


@contextmanager
def asking(host: Host, kind: type, port: int, **upstream: int) -> Iterator[Traffic]:
    actor = host.actor()
    actor.do(clients.start, kind, port, COUNT)
    yield (
        {port: COUNT, **{number: 1 for number in upstream.values()}},
        lambda: int(actor.do(clients.finish)),
    )


@contextmanager
def redis(host: Host, scratch: Path) -> Iterator[Traffic]:
    needs("redis-server")
    with (
        servers.redis(place(host), scratch) as address,
        asking(host, clients.Redis, address.port) as traffic,
    ):
        yield traffic


@contextmanager
def memcached(host: Host, scratch: Path) -> Iterator[Traffic]:
    needs("memcached")
    with (
        servers.memcached(place(host), scratch) as address,
        asking(host, clients.Memcached, address.port) as traffic,
    ):
        yield traffic


@contextmanager
def _web(host: Host, scratch: Path) -> Iterator[servers.Address]:
    needs("nginx")
    with servers.nginx(place(host), scratch) as address:
        (scratch / "nginx-web" / "www" / "index.html").write_bytes(clients.PAGE)
        yield address


@contextmanager
def nginx(host: Host, scratch: Path) -> Iterator[Traffic]:
    """A proxy that keeps its connections to the server behind it."""
    with (
        _web(host, scratch) as app,
        servers.nginx(place(host), scratch, app=app) as proxy,
        asking(host, clients.Http, proxy.port, upstream=app.port) as traffic,
    ):
        yield traffic


_HAPROXY = """
defaults
    mode http
    timeout connect 20s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend f
    bind 127.0.0.1:{port}
    default_backend b
backend b
    server app 127.0.0.1:{app}
"""


@contextmanager
def haproxy(host: Host, scratch: Path) -> Iterator[Traffic]:
    needs("haproxy")
    with _web(host, scratch) as app:
        port = free_port()
        configuration = scratch / "haproxy.cfg"
        configuration.write_text(_HAPROXY.format(port=port, app=app.port))
        process = spawn(["haproxy", "-db", "-f", str(configuration)], host.cgroup)
        try:
            servers._await(process, 2, ("127.0.0.1", port))
            with asking(host, clients.Http, port, upstream=app.port) as traffic:
                yield traffic
        finally:
            end(process)


class _Psql:
    """psql, and so libpq; one question after the other, on a pipe."""

    def __init__(self, host: Host, port: int) -> None:
        command = [
            "psql",
            "-qAtX",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-U",
            "postgres",
            "postgres",
        ]
        self.process = spawn(command, host.cgroup)
        self.number = 0

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
def _psqls(host: Host, port: int, **upstream: int) -> Iterator[Traffic]:
    asking = [_Psql(host, port) for _ in range(COUNT)]
    pump = clients._Pump(asking)  # type: ignore[arg-type]
    pump.start()
    clients._pumps.append(pump)
    try:
        yield {port: COUNT, **{number: 1 for number in upstream.values()}}, clients.finish
    finally:
        pump.ending.set()
        for one in asking:
            end(one.process)


@contextmanager
def postgresql(host: Host, scratch: Path) -> Iterator[Traffic]:
    needs("psql", "pg_ctlcluster")
    with (
        servers.Postgres(scratch).serving(place(host)) as address,
        _psqls(host, address.port) as traffic,
    ):
        yield traffic


_PGBOUNCER = """
[databases]
postgres = host=127.0.0.1 port={server} dbname=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
"""


@contextmanager
def pgbouncer(host: Host, scratch: Path) -> Iterator[Traffic]:
    needs("psql", "pg_ctlcluster", "pgbouncer")
    with servers.Postgres(scratch).serving(place(host)) as address:
        port = free_port()
        configuration = scratch / "pgbouncer.ini"
        text = _PGBOUNCER.replace("dbname=postgres", "dbname=postgres user=postgres")
        configuration.write_text(text.format(port=port, server=address.port))
        user = pwd.getpwnam("postgres").pw_uid
        process = spawn(["pgbouncer", "-q", str(configuration)], host.cgroup, user=user)
        try:
            servers._await(process, 2, ("127.0.0.1", port))
            with _psqls(host, port, upstream=address.port) as traffic:
                yield traffic
        finally:
            end(process)


@contextmanager
def _echo(host: Host, command: list[str]) -> Iterator[Traffic]:
    server = spawn([*command, "serve"], host.cgroup)
    assert server.stdout is not None
    port = int(server.stdout.readline())
    client = spawn([*command, "ask", str(port), str(COUNT)], host.cgroup)

    def finish() -> int:
        output, errors = client.communicate(timeout=60)
        assert client.returncode == 0, errors
        return int(output)

    try:
        yield {port: COUNT}, finish
    finally:
        end(client)
        end(server)


@contextmanager
def node(host: Host, _scratch: Path) -> Iterator[Traffic]:
    needs("node")
    with _echo(host, ["node", str(HERE / "echo.js")]) as traffic:
        yield traffic


@contextmanager
def go(host: Host, scratch: Path) -> Iterator[Traffic]:
    needs("go")
    program = scratch / "echo"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOCACHE": str(scratch / "cache")}
    command = ["go", "build", "-o", str(program), str(HERE / "echo.go")]
    subprocess.run(command, env=environment, check=True)
    with _echo(host, [str(program)]) as traffic:
        yield traffic


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory that servers can read which are not root."""
    with tempfile.TemporaryDirectory(prefix="programs-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.parametrize(
    "program", [redis, memcached, nginx, haproxy, postgresql, pgbouncer, node, go]
)
def test_connections_of_before(
    host: Host,
    client: Client,
    scratch: Path,
    program: Callable[[Host, Path], Iterator[Traffic]],
    record_property: Callable[[str, object], None],
) -> None:
    with program(host, scratch) as (ports, finish):  # type: ignore[attr-defined]
        client.call("Enable")
        began = time.monotonic()
        missing = ports

        def accelerated() -> bool:
            nonlocal missing
            shown = client.call("Connections", "u", 0)
            found = [c["server"].rpartition(":")[2] for c in shown if not c["leaving"]]
            missing = {p: n for p, n in ports.items() if found.count(str(p)) < n}
            return not missing

        try:
            eventually(accelerated, "connections of before are accelerated")
        except AssertionError as error:
            told = {k: v for k, v in client.call("Stats").items() if v}
            raise AssertionError(
                f"{error}: {missing}, {told}, {client.get('LiveConnections')}"
            ) from None
        took = time.monotonic() - began
        record_property("seconds", took)
        print(f"{took:.1f} s")
        stats = client.call("Stats")
        assert stats["joined_connections"] >= COUNT
        before = stats["redirected_messages"]
        eventually(
            lambda: client.call("Stats")["redirected_messages"] > before + 500, "it is redirected"
        )
        assert finish() > 100
        assert took < WITHIN_S * PATIENCE
