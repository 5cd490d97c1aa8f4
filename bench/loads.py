"""Workloads of bench/load/*.c: request and response, streams, short connections, caches."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from bench.datapaths import (
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
    cpu_seconds,
    end,
    spawn,
)
from bench.host import Host
from bench.servers import Address
from bench.workload import EVERYWHERE, SAME_CORE, TWO_CORES, Sample, Workload
from support import topology

SOURCES = Path(__file__).parent / "load"
LOADS = ("rr", "stream", "crr", "blocks", "cache")
# Of crr: a listener has seen few, or so many that it is known what acceleration does for it
FEW_CONNECTIONS, MANY_CONNECTIONS = 50, 2048
RR, STREAMS, SHORT, EDGES, TRACING = (
    "Request and response",
    "Streams",
    "Short connections",
    "Connections that are not accelerated",
    "While somebody traces",
)
BLOCKING = 'Readers that sleep inside recv(), with blocking_readers = "accelerate"'
NETWORKS = 'Network namespaces, with addresses = "any"'
PLACES = {"same-core": SAME_CORE, "two-cores": TWO_CORES}
PEERS = "Beside what else there is"
OLDER = "Connections that are older than Enable"
SUSTAINED = "Streams that go on"


def build(directory: Path) -> None:
    """Compiles the load generators."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in LOADS:
        subprocess.run(
            [
                *("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wno-unused-function"),
                *("-pthread", "-o", str(directory / name), str(SOURCES / f"{name}.c")),
            ],
            check=True,
        )


def kib(size: int) -> str:
    if size < 1024:
        return f"{size} B"
    return f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"


class Loads:
    """Runs them; `duration` in ms is that of one measurement."""

    def __init__(self, host: Host, directory: Path, duration: int) -> None:
        self._host = host
        self._directory = directory
        self._duration = duration

    def _talk(
        self,
        path: Datapath,
        cpus: tuple[int, int],
        load: str,
        server: list[object],
        client: list[object],
        connections: int = 1,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The results of both ends. Arguments follow the address."""
        program, network = str(self._directory / load), path.network
        address = str(self._host.scratch / f"{load}.socket") if path.unix else str(path.port)
        Path(address).unlink(missing_ok=True)
        if network is not None:
            address = f"{network.bound}:{network.port}"
        listening = spawn(
            [program, "server", address, *map(str, server)],
            path.server,
            frozenset({cpus[0]}),
            namespace=network.server if network else None,
        )
        try:
            assert listening.stdout is not None
            port = listening.stdout.readline().strip()
            if network is not None:
                address = f"{network.dialled}:{network.dialled_port or network.port}"
            elif not path.unix:
                address = port
            asking = spawn(
                [program, "client", address, *map(str, client)],
                path.client,
                frozenset({cpus[1]}),
                namespace=network.client if network else None,
            )
            theirs = self._result(asking, path, connections)
            ours = self._result(listening, path, connections)
        finally:
            end(listening)
        return ours, theirs

    def _result(
        self, process: subprocess.Popen[str], path: Datapath, connections: int
    ) -> dict[str, Any]:
        assert process.stdout is not None and process.stdin is not None
        line = process.stdout.readline()
        if line == "paused\n":
            if path.change is not None:
                path.change(connections)
            process.stdin.write("go on\n")
            process.stdin.flush()
            line = process.stdout.readline()
        _, errors = process.communicate(timeout=60)
        if process.returncode != 0 or not line:
            raise RuntimeError(f"{process.args!r}: status {process.returncode}: {errors.strip()}")
        result: dict[str, Any] = json.loads(line)
        return result

    def rr(
        self,
        path: Datapath,
        *,
        size: int,
        answer: int = 0,
        connections: int = 1,
        idle: int = 0,
        cpus: tuple[int, int] = TWO_CORES,
        pause: bool = False,
        blocking: bool = False,
    ) -> Sample:
        """Answers are as long as the requests, unless it says how long."""
        options = ["blocking"] if blocking else []
        sizes = f"{size}/{answer or size}"
        client = [sizes, connections, idle, self._duration, *options, *(["pause"] if pause else [])]
        serving = [sizes, connections + idle, *options]
        server, result = self._talk(path, cpus, "rr", serving, client, connections + idle)
        return Sample(
            rate=result["operations"] / result["seconds"],
            server_cpu_us=server["cpu_seconds"] / server["operations"] * 1e6,
            client_cpu_us=result["cpu_seconds"] / result["operations"] * 1e6,
            more={name: result[name] for name in ("p50_us", "p99_us", "p99.9_us")},
        )

    def stream(self, path: Datapath, *, size: int, way: str) -> Sample:
        """MB/s where it is read; CPU time per MB."""
        arguments = [size, self._duration, way]
        server, client = self._talk(path, TWO_CORES, "stream", arguments, arguments)
        megabytes = (server["bytes"] + client["bytes"]) / 1e6
        return Sample(
            rate=megabytes / max(server["seconds"], client["seconds"]),
            server_cpu_us=server["cpu_seconds"] / megabytes * 1e6,
            client_cpu_us=client["cpu_seconds"] / megabytes * 1e6,
        )

    def crr(
        self, path: Datapath, *, warm_up: int = MANY_CONNECTIONS, defer: bool = False
    ) -> Sample:
        arguments = [64, warm_up, *(["defer"] if defer else [])]
        server, client = self._talk(
            path, TWO_CORES, "crr", arguments, [64, warm_up, self._duration]
        )
        return Sample(
            rate=client["operations"] / client["seconds"],
            server_cpu_us=server["cpu_seconds"] / server["operations"] * 1e6,
            client_cpu_us=client["cpu_seconds"] / client["operations"] * 1e6,
            more={"connections": client["operations"] + warm_up + 1},
        )

    def cache(
        self, path: Datapath, kind: str, address: Address, *, value: int, connections: int = 1
    ) -> Sample:
        """Of a server that runs already; `kind` is memcached or redis."""
        where = str(address.path) if path.unix else str(address.port)
        arguments = [kind, where, str(value), str(connections), str(self._duration)]
        pause = ["pause"] if path.change else []
        before = cpu_seconds(path.server)
        process = spawn(
            [str(self._directory / "cache"), *arguments, *pause], path.client, path.client_cpus
        )
        client = self._result(process, path, connections)
        used = cpu_seconds(path.server) - before
        return Sample(
            rate=client["operations"] / client["seconds"],
            server_cpu_us=used / client["operations"] * 1e6,
            client_cpu_us=client["cpu_seconds"] / client["operations"] * 1e6,
        )

    def workloads(self) -> list[Workload]:
        return [
            *self._rr(),
            self._batches(),
            *self._streams(),
            *self._short(),
            *self._blocking(),
            *self._networks(),
            *self._peers(),
            self._joined(),
            *self._edges(),
            self._traced(),
        ]

    def _rr(self) -> list[Workload]:
        found = []
        for size in (1, 64, 1024, 8192, 65536):
            for name, cpus in PLACES.items():
                targets = {}
                if 64 <= size <= 8192 and cpus == SAME_CORE:
                    targets = {f"{OURS}/tcp": 1.6, f"{OURS}/unix": 1.05, f"{OURS}/textbook": 0.97}
                elif 64 <= size <= 8192:
                    targets = {f"{OURS}/tcp": 1.2}
                found.append(
                    Workload(
                        f"rr-{size}-{name}",
                        RR,
                        f"{kib(size)}, {name.replace('-', ' ')}",
                        "round trips/s",
                        "round trip",
                        partial(self.rr, size=size, cpus=cpus),
                        targets=targets,
                        quick=(size, name)
                        in ((64, "same-core"), (64, "two-cores"), (8192, "same-core")),
                    )
                )
        for connections, idle in ((16, 0), (256, 0), (16, 10_000)):
            beside = " of 10,016" if idle else ""
            found.append(
                Workload(
                    f"rr-64-{connections}" + ("-of-10016" if idle else ""),
                    RR,
                    f"64 B, {connections}{beside} connections",
                    "round trips/s",
                    "round trip",
                    partial(self.rr, size=64, connections=connections, idle=idle),
                    datapaths=(TCP, OURS) if idle else EVERYWHERE,
                    rounds=9 if idle else 15,
                )
            )
        return found

    def _batches(self) -> Workload:
        """A producer of a message queue that waits until a batch is acknowledged."""
        return Workload(
            "batches",
            RR,
            "batches of 64 KiB, each acknowledged by 64 B, two cores",
            "batches/s",
            "batch",
            partial(self.rr, size=65536, answer=64, cpus=TWO_CORES),
            targets={f"{OURS}/tcp": 0.98},
        )

    def _streams(self) -> list[Workload]:
        found = []
        for size in (64, 1024, 16384, 65536, 262144, 1 << 20):
            for way in ("up", "down", "both") if size == 65536 else ("up", "down"):
                words = {"up": "to the server", "down": "to the client", "both": "both ways"}
                found.append(
                    Workload(
                        f"stream-{size}-{way}",
                        STREAMS,
                        f"writes of {kib(size)} {words[way]}",
                        "MB/s",
                        "MB",
                        partial(self.stream, size=size, way=way),
                        targets={f"{OURS}/tcp": 1.0},
                        quick=way == "up" and size in (1024, 65536),
                    )
                )
        return found

    def sustained(self) -> list[Workload]:
        """So long that everybody settles: the reader, the window, and what is learned."""
        return [
            Workload(
                f"sustained-{size}",
                SUSTAINED,
                f"writes of {kib(size)} to the server, {self._duration // 1000} s",
                "MB/s",
                "MB",
                partial(self.stream, size=size, way="up"),
                datapaths=(TCP, OURS),
                targets={f"{OURS}/tcp": 0.97},
                rounds=9,
            )
            for size in (64, 1024, 16384, 65536, 262144)
        ]

    def _blocking(self) -> list[Workload]:
        return [
            Workload(
                f"rr-64-blocking-{name}",
                BLOCKING,
                f"64 B, {name.replace('-', ' ')}",
                "round trips/s",
                "round trip",
                partial(self.rr, size=64, cpus=cpus, blocking=True),
                scope={"blocking_readers": "accelerate"},
            )
            for name, cpus in PLACES.items()
        ]

    def _networks(self) -> list[Workload]:
        kinds = (
            ("bridge", "two containers on a bridge", topology.bridge),
            ("dnat", "a container to a service address (DNAT)", topology.service_address),
        )
        return [
            Workload(
                f"rr-64-{name}-{place}",
                NETWORKS,
                f"64 B, {title}, {place.replace('-', ' ')}",
                "round trips/s",
                "round trip",
                partial(self.rr, size=64, cpus=cpus),
                datapaths=(TCP, OURS),
                targets={f"{OURS}/tcp": 1.2},
                scope={"addresses": "any"},
                network=network,
            )
            for name, title, network in kinds
            for place, cpus in PLACES.items()
        ]

    def _peers(self) -> list[Workload]:
        return [
            Workload(
                f"rr-64-peers-{place}",
                PEERS,
                f"64 B there and back, {place.replace('-', ' ')}",
                "round trips/s",
                "round trip",
                partial(self.rr, size=64, cpus=cpus),
                datapaths=(TCP, OURS, TEXTBOOK, MESH, UNIX),
            )
            for place, cpus in PLACES.items()
        ]

    def _joined(self) -> Workload:
        return Workload(
            "rr-64-joined",
            OLDER,
            "64 B there and back, same core",
            "round trips/s",
            "round trip",
            partial(self.rr, size=64, cpus=SAME_CORE, pause=True),
            datapaths=(TCP, OURS, JOINED),
            targets={f"{JOINED}/{OURS}": 0.97},
            rounds=9,
        )

    def _traced(self) -> Workload:
        return Workload(
            "rr-64-traced",
            TRACING,
            "64 B there and back, same core",
            "round trips/s",
            "round trip",
            partial(self.rr, size=64, cpus=SAME_CORE),
            datapaths=(TCP, OURS, TRACED),
            targets={f"{TRACED}/{OURS}": 0.99},
        )

    def _short(self) -> list[Workload]:
        return [
            Workload(
                "crr",
                SHORT,
                "connect, 64 B there and back, close",
                "connections/s",
                "connection",
                self.crr,
                targets={f"{OURS}/tcp": 0.96},
                quick=True,
            ),
            Workload(
                "crr-first",
                SHORT,
                "the same, the first connections to a listener",
                "connections/s",
                "connection",
                partial(self.crr, warm_up=FEW_CONNECTIONS),
                datapaths=(TCP, OURS),
            ),
            Workload(
                "crr-deferred",
                SHORT,
                "the same, TCP_DEFER_ACCEPT on the listener",
                "connections/s",
                "connection",
                partial(self.crr, defer=True),
                datapaths=(TCP, OURS),  # the textbook mixes bytes up here
                targets={f"{OURS}/tcp": 0.98},
                accelerated=False,
            ),
        ]

    def _edges(self) -> list[Workload]:
        crowd = (TCP, EXCLUDED, OUTSIDE)
        wanted = {f"{name}/tcp": 0.98 for name in (EXCLUDED, OUTSIDE)}
        return [
            Workload(
                "edge-rr",
                EDGES,
                "64 B there and back, two cores",
                "round trips/s",
                "round trip",
                partial(self.rr, size=64, pause=True),
                datapaths=(*crowd, RETIRED),
                targets={**wanted, f"{RETIRED}/tcp": 0.98},
                rounds=11,
            ),
            Workload(
                "edge-stream",
                EDGES,
                "writes of 64 KiB to the server",
                "MB/s",
                "MB",
                partial(self.stream, size=65536, way="up"),
                datapaths=crowd,
                targets=wanted,
            ),
            Workload(
                "edge-crr",
                EDGES,
                "connect, 64 B there and back, close",
                "connections/s",
                "connection",
                self.crr,
                datapaths=crowd,
                targets=wanted,
            ),
        ]
