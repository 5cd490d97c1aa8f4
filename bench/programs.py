"""Workloads of real programs and of the tools users know."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Callable
from functools import cached_property, partial

from bench import servers
from bench.datapaths import JOINED, OURS, TCP, TEXTBOOK, Datapath, cpu_seconds, end, spawn
from bench.host import Host
from bench.loads import Loads
from bench.spread import FEWEST_ROUNDS
from bench.workload import SAME_CORE, TWO_CORES, Sample, Workload
from support.daemon.process import PYTHON

TOOLS, PROGRAMS = "Tools", "Programs"
POOLS = "Pools that are older than Enable"
NO_UNIX = (TCP, OURS, TEXTBOOK)
VALUES = (64, 4096)
ROUNDS = 9
JOINING_S = 10  # so long that what begins on TCP does not count for much
POOL = 16  # connections to a cache
PG_CLIENTS = 4
PG_SECONDS = 2  # for which a pool of PostgreSQL is measured


class Programs:
    def __init__(self, host: Host, loads: Loads) -> None:
        self._host = host
        self._loads = loads

    def _client(
        self, path: Datapath, command: list[str], parse: Callable[[str], tuple[float, float]]
    ) -> Sample:
        """Runs a client; `parse` finds its rate, and how many operations it did, in its output."""
        before = cpu_seconds(path.server), cpu_seconds(path.client)
        process = spawn(command, path.client, path.client_cpus)
        output, errors = process.communicate(timeout=120)
        if process.returncode != 0:
            raise RuntimeError(f"{command}: status {process.returncode}: {output}{errors}")
        rate, operations = parse(output)
        return Sample(
            rate,
            (cpu_seconds(path.server) - before[0]) / operations * 1e6,
            (cpu_seconds(path.client) - before[1]) / operations * 1e6,
        )

    # -- tools -------------------------------------------------------------------------------

    def sockperf(self, path: Datapath) -> Sample:
        with servers.sockperf(path, self._host.scratch) as address:
            where = ["-i", "127.0.0.1", "-p", str(address.port)]
            command = ["sockperf", "ping-pong", "--tcp", *where, "-t", "1", "-m", "64"]
            return self._client(path, command, _sockperf)

    def iperf3(self, path: Datapath) -> Sample:
        with servers.iperf3(path, self._host.scratch) as address:
            where = ["--client", "127.0.0.1", "--port", str(address.port)]
            return self._client(path, ["iperf3", *where, "-n", "2G", "--json"], _iperf3)

    # -- programs ----------------------------------------------------------------------------

    def redis(self, path: Datapath, *, pipeline: int, value: int) -> Sample:
        with servers.redis(path, self._host.scratch) as address:
            where = ["-s", str(address.path)] if path.unix else ["-p", str(address.port)]
            asking = ["redis-benchmark", *where, "-c", "50", "-d", str(value)]
            fill = spawn([*asking, "-t", "set", "-n", "1000", "-q"], path.client, path.client_cpus)
            fill.communicate(timeout=30)
            count = 200_000 if pipeline > 1 else 40_000
            if value > 1024:
                count //= 2
            command = [*asking, "-t", "get", "-P", str(pipeline), "-n", str(count), "--csv"]
            return self._client(path, command, partial(_redis, count))

    @cached_property
    def _postgres(self) -> servers.Postgres:
        postgres = servers.Postgres(self._host.scratch)
        postgres.populate(self._host.datapaths[TCP])
        return postgres

    def pgbench(self, path: Datapath, *, arguments: tuple[str, ...], count: int) -> Sample:
        with self._postgres.serving(path) as address:
            where = str(address.path) if path.unix else "127.0.0.1"
            command = _pgbench_command(where, address.port, "-t", str(count), *arguments)
            return self._client(path, command, partial(_pgbench, PG_CLIENTS * count))

    def pgbench_pool(self, path: Datapath) -> Sample:
        """pgbench reports each second; that in which `path` changes is left out."""
        with self._postgres.serving(path) as address:
            for_long = ("-T", "600", "-P", "1", "-S", "-M", "prepared")
            command = _pgbench_command("127.0.0.1", address.port, *for_long)
            process = spawn(command, path.client, path.client_cpus)
            try:
                _pgbench_second(process)
                if path.change is not None:
                    path.change(PG_CLIENTS)
                _pgbench_second(process)
                before = cpu_seconds(path.server), cpu_seconds(path.client)
                rates = [_pgbench_second(process) for _ in range(PG_SECONDS)]
                after = cpu_seconds(path.server), cpu_seconds(path.client)
            finally:
                end(process)
        total = sum(rates)
        server, client = ((b - a) / total * 1e6 for a, b in zip(before, after, strict=True))
        return Sample(total / PG_SECONDS, server, client)

    def pgbouncer(self, path: Datapath) -> Sample:
        """Both ends of the pool's connections are on one CPU, as PostgreSQL and pgbouncer are."""
        count = 2000
        with (
            self._postgres.serving(path) as server,
            servers.pgbouncer(path, self._host.scratch, server, pool=PG_CLIENTS) as address,
        ):
            command = _pgbench_command("127.0.0.1", address.port, "-t", str(count), "-S")
            return self._client(path, command, partial(_pgbench, PG_CLIENTS * count))

    def cache(self, path: Datapath, kind: str, *, value: int, connections: int = 1) -> Sample:
        serve = {"memcached": servers.memcached, "redis": servers.redis}[kind]
        with serve(path, self._host.scratch) as address:
            return self._loads.cache(path, kind, address, value=value, connections=connections)

    def nginx(self, path: Datapath) -> Sample:
        with servers.nginx(path, self._host.scratch) as address:
            return self._wrk(path, address)

    def proxy(self, path: Datapath, *, keep: bool) -> Sample:
        """The proxy and the application server are both ends of one of the connections."""
        scratch = self._host.scratch
        with (
            servers.nginx(path, scratch) as app,
            servers.nginx(path, scratch, app=app, keep=keep) as address,
        ):
            return self._wrk(path, address)

    def haproxy(self, path: Datapath) -> Sample:
        scratch = self._host.scratch
        with (
            servers.nginx(path, scratch) as app,
            servers.haproxy(path, scratch, app) as address,
        ):
            return self._wrk(path, address)

    def php(self, path: Datapath) -> Sample:
        """Both ends of the connections to PHP-FPM are servers here; it sleeps inside read()."""
        scratch = self._host.scratch
        with (
            servers.php_fpm(path, scratch) as app,
            servers.nginx(path, scratch, app=app, php=True) as address,
        ):
            return self._wrk(path, address)

    def grpc(self, path: Datapath) -> Sample:
        with servers.grpc(path, self._host.scratch) as address:
            words = [str(address.port), "64", "1", "4"]  # bytes, seconds, calls at a time
            command = [PYTHON, str(servers.GRPC_ECHO), "client", *words]
            return self._client(path, command, _grpc)

    def nginx_deferred(self, path: Datapath, *, keep: bool) -> Sample:
        with servers.nginx(path, self._host.scratch, deferred=True) as address:
            return self._wrk(path, address, keep=keep, seconds=JOINING_S if keep else 1)

    def apache(self, path: Datapath) -> Sample:
        with servers.apache(path, self._host.scratch) as address:
            return self._wrk(path, address, keep=False)

    def _wrk(
        self, path: Datapath, address: servers.Address, *, keep: bool = True, seconds: int = 1
    ) -> Sample:
        url = f"http://127.0.0.1:{address.port}/index.html"
        close = [] if keep else ["-H", "Connection: close"]
        return self._client(
            path, ["wrk", "-t", "1", "-c", "16", "-d", f"{seconds}s", *close, url], _wrk
        )

    def workloads(self) -> list[Workload]:
        return [
            Workload(
                "sockperf",
                TOOLS,
                "sockperf ping-pong, 64 B",
                "round trips/s",
                "round trip",
                self.sockperf,
                datapaths=(TCP, OURS),
                rounds=ROUNDS,
                cpus=SAME_CORE,
                scope={"blocking_readers": "accelerate"},  # it sleeps inside recv()
            ),
            Workload(
                "iperf3",
                TOOLS,
                "iperf3, writes of 128 KiB",
                "MB/s",
                "MB",
                self.iperf3,
                datapaths=(TCP, OURS),
                rounds=ROUNDS,
                cpus=TWO_CORES,
                targets={f"{OURS}/tcp": 0.98},
            ),
            *self._redis(),
            *self._pgbench(),
            *self._memcached(),
            *self._nginx(),
            self._pgbouncer(),
            self._deferred_keepalive(),
            *self._deferred(),
            self._grpc(),
            *self._pools(),
        ]

    def _redis(self) -> list[Workload]:
        targets = {(1, 64): 1.3, (16, 64): 1.2, (1, 4096): 1.35}
        return [
            Workload(
                f"redis-p{pipeline}-{value}",
                PROGRAMS,
                f"redis GET, 50 clients, {value} B values"
                + (f", {pipeline} in a pipeline" if pipeline > 1 else ""),
                "requests/s",
                "request",
                partial(self.redis, pipeline=pipeline, value=value),
                rounds=ROUNDS,
                cpus=TWO_CORES,
                targets={f"{OURS}/tcp": targets.get((pipeline, value), 0.98)},
                quick=(pipeline, value) == (1, 64),
            )
            for pipeline in (1, 16)
            for value in VALUES
        ]

    def _pgbench(self) -> list[Workload]:
        kinds = (
            ("select", "pgbench -S, 4 clients, prepared", ("-S", "-M", "prepared"), 2500, 1.4),
            ("tpcb", "pgbench TPC-B, 4 clients, prepared", ("-M", "prepared"), 400, 0.98),
        )
        return [
            Workload(
                f"pgbench-{name}",
                PROGRAMS,
                title,
                "transactions/s",
                "transaction",
                partial(self.pgbench, arguments=arguments, count=count),
                rounds=ROUNDS,
                cpus=TWO_CORES,
                targets={f"{OURS}/tcp": target},
            )
            for name, title, arguments, count, target in kinds
        ]

    def _memcached(self) -> list[Workload]:
        return [
            Workload(
                f"memcached-{value}",
                PROGRAMS,
                f"memcached get, 1 client, {value} B values",
                "requests/s",
                "request",
                partial(self.cache, kind="memcached", value=value),
                rounds=ROUNDS,
                cpus=SAME_CORE,
                targets={f"{OURS}/tcp": 1.3 if value == VALUES[0] else 0.98},
                quick=value == VALUES[0],
            )
            for value in VALUES
        ]

    def _nginx(self) -> list[Workload]:
        kinds: tuple[tuple[str, str, Callable[[Datapath], Sample], float], ...] = (
            ("nginx", "nginx + wrk, keepalive, 1 KiB file", self.nginx, 1.1),
            (
                "proxy-keepalive",
                "nginx as a proxy, connections kept",
                partial(self.proxy, keep=True),
                0.98,
            ),
            ("haproxy", "HAProxy before nginx, connections kept", self.haproxy, 0.98),
            ("php", "PHP-FPM behind nginx, connections kept", self.php, 0.98),
            (
                "proxy",
                "nginx as a proxy, a connection per request",
                partial(self.proxy, keep=False),
                0.98,
            ),
        )
        return [
            Workload(
                name,
                PROGRAMS,
                title,
                "requests/s",
                "request",
                run,
                datapaths=NO_UNIX,
                rounds=ROUNDS,
                cpus=TWO_CORES,
                targets={f"{OURS}/tcp": target},
            )
            for name, title, run, target in kinds
        ]

    def _deferred_keepalive(self) -> Workload:
        """They begin on TCP, as the first request comes with the handshake, and join."""
        return Workload(
            "nginx-deferred-keepalive",
            PROGRAMS,
            f"nginx + wrk, keepalive, TCP_DEFER_ACCEPT, {JOINING_S} s from the first connection",
            "requests/s",
            "request",
            partial(self.nginx_deferred, keep=True),
            datapaths=(TCP, OURS),  # the textbook mixes bytes up here
            rounds=FEWEST_ROUNDS,
            cpus=TWO_CORES,
            targets={f"{OURS}/tcp": 1.3},
        )

    def _pgbouncer(self) -> Workload:
        return Workload(
            "pgbouncer",
            PROGRAMS,
            "pgbench -S, 4 clients, through pgbouncer",
            "transactions/s",
            "transaction",
            self.pgbouncer,
            datapaths=NO_UNIX,
            rounds=ROUNDS,
            cpus=TWO_CORES,
            targets={f"{OURS}/tcp": 0.98},
        )

    def _grpc(self) -> Workload:
        """Its C core asks for SO_ZEROCOPY, TCP_USER_TIMEOUT and TCP_INQ, so it stays on TCP."""
        return Workload(
            "grpc",
            PROGRAMS,
            "gRPC in Python, 4 calls of 64 B at a time, which stays on TCP",
            "calls/s",
            "call",
            self.grpc,
            datapaths=(TCP, OURS),
            rounds=ROUNDS,
            cpus=TWO_CORES,
            targets={f"{OURS}/tcp": 0.98},
            accelerated=False,
        )

    def _pools(self) -> list[Workload]:
        pgbench = "pgbench -S, 4 clients, prepared", "transactions/s", "transaction"
        kinds: list[tuple[str, tuple[str, str, str], Callable[[Datapath], Sample]]] = [
            ("pgbench", pgbench, self.pgbench_pool)
        ]
        for kind in ("redis", "memcached"):
            title = f"{kind} get, {POOL} connections, {VALUES[0]} B values"
            run = partial(self.cache, kind=kind, value=VALUES[0], connections=POOL)
            kinds.append((kind, (title, "requests/s", "request"), run))
        return [
            Workload(
                f"{name}-pool",
                POOLS,
                title,
                unit,
                operation,
                run,
                datapaths=(TCP, OURS, JOINED),
                rounds=ROUNDS,
                cpus=TWO_CORES,
                targets={f"{JOINED}/{OURS}": 0.97},
            )
            for name, (title, unit, operation), run in kinds
        ]

    def _deferred(self) -> list[Workload]:
        """Nothing is accelerated there, as the first data comes with the handshake."""
        return [
            Workload(
                name,
                PROGRAMS,
                f"{title}, a connection per request, TCP_DEFER_ACCEPT",
                "requests/s",
                "request",
                run,
                datapaths=(TCP, OURS),  # the textbook mixes bytes up here
                rounds=ROUNDS,
                cpus=TWO_CORES,
                targets={f"{OURS}/tcp": 0.98},
                accelerated=False,
            )
            for name, title, run in (
                ("nginx-deferred", "nginx", partial(self.nginx_deferred, keep=False)),
                ("apache", "Apache", self.apache),
            )
        ]


def _sockperf(output: str) -> tuple[float, float]:
    """Its latency is half a round trip."""
    latency = re.search(r"Latency is (\S+) usec", output)
    received = re.search(r"ReceivedMessages=(\d+)", output)
    if latency is None or received is None:
        raise RuntimeError(f"sockperf said: {output}")
    return 1e6 / (2 * float(latency[1])), float(received[1])


def _iperf3(output: str) -> tuple[float, float]:
    received = json.loads(output)["end"]["sum_received"]
    return received["bits_per_second"] / 8e6, received["bytes"] / 1e6


def _redis(count: int, output: str) -> tuple[float, float]:
    rows = list(csv.reader(output.splitlines()))
    return float(rows[-1][1]), count


def _pgbench_command(where: str, port: int, *arguments: str) -> list[str]:
    return [
        *("pgbench", "-n", "-c", str(PG_CLIENTS), *arguments),
        *("-h", where, "-p", str(port), "-U", "postgres", "postgres"),
    ]


def _pgbench(count: int, output: str) -> tuple[float, float]:
    found = re.search(r"tps = (\S+) \(without initial", output)
    if found is None:
        raise RuntimeError(f"pgbench said: {output}")
    return float(found[1]), count


def _pgbench_second(process: subprocess.Popen[str]) -> float:
    """Transactions in the second that it reports next."""
    assert process.stderr is not None
    for line in process.stderr:
        found = re.match(r"progress: \S+ s, (\S+) tps", line)
        if found is not None:
            return float(found[1])
    raise RuntimeError(f"pgbench ended: {process.communicate()[0]}")


def _grpc(output: str) -> tuple[float, float]:
    result = json.loads(output)
    return result["rate"], result["calls"]


def _wrk(output: str) -> tuple[float, float]:
    rate = re.search(r"Requests/sec:\s+(\S+)", output)
    count = re.search(r"(\d+) requests in", output)
    if rate is None or count is None or "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"wrk said: {output}")
    return float(rate[1]), float(count[1])
