"""Container engines, and containers of an image that is made of this guest's own root."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asking import (
    CONNECTIONS,
    PROGRAM,
    Asker,
    check_accelerated,
    check_disabled_without_loss,
    on_host,
)
from shell import sh

ENABLE = "sockredirctl enable --addresses any"

# As from a registry, since the commands of docs/containers.md name it so
IMAGE = "docker.io/library/redis:8"
PROGRAMS = ("redis-server", "redis-cli", "redis-benchmark")
# Where `logs` needs no journal
LOGS = {"podman": "--log-driver k8s-file", "docker": "--log-driver json-file"}
COMMAND = 'CMD ["redis-server", "--save", "", "--protected-mode", "no"]'


def import_image(engine: str) -> None:
    """redis with its libraries, a shell for health checks, and the program that asks."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        root = Path(name)
        for directory in ("bin", "usr/bin", "etc", "tmp", "data"):
            (root / directory).mkdir(parents=True)
        shutil.copy("/bin/dash", root / "bin/sh")
        shutil.copy(PROGRAM, root / "usr/bin/ask")
        needed = {"/bin/dash"}
        for program in PROGRAMS:
            shutil.copy(f"/usr/bin/{program}", root / "usr/bin" / program)
            needed.add(f"/usr/bin/{program}")
        for library in re.findall(r"(/\S+) \(0x", sh(f"ldd {' '.join(sorted(needed))}")):
            to = root / library.lstrip("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, to)
        sh(
            f"tar -C {root} -c . | {engine} import "
            f"--change '{COMMAND}' --change 'WORKDIR /data' - {IMAGE}"
        )


def address(engine: str, container: str, network: str) -> str:
    """That a container has in a network."""
    path = f'(index .NetworkSettings.Networks "{network}").IPAddress'
    return sh(f"{engine} inspect -f '{{{{{path}}}}}' {container}").strip()


def gateway(engine: str, container: str, network: str) -> str:
    """The host's own address in that network."""
    path = f'(index .NetworkSettings.Networks "{network}").Gateway'
    return sh(f"{engine} inspect -f '{{{{{path}}}}}' {container}").strip()


def identity(engine: str, container: str) -> str:
    return sh(f"{engine} inspect -f '{{{{.Id}}}}' {container}").strip()


@contextmanager
def network(engine: str, name: str, options: str = "") -> Iterator[None]:
    sh(f"{engine} network create {options} {name}")
    try:
        yield
    finally:
        sh(f"{engine} network rm {name}")


@contextmanager
def container(engine: str, name: str, options: str = "", command: str = "") -> Iterator[None]:
    """redis-server, unless another command is given."""
    sh(f"{engine} run -d --name {name} {LOGS[engine]} {options} {IMAGE} {command}")
    try:
        yield
    finally:
        sh(f"{engine} logs {name} 2>&1 | tail -n 20; {engine} rm -f {name}")


@contextmanager
def app(
    engine: str, where: str, options: str, *, local_port: int = 0, name: str = "app"
) -> Iterator[Asker]:
    """A container that asks; when the block ends it has to end with status 0."""
    connections = 1 if local_port else CONNECTIONS
    command = f"ask {where} {connections} {local_port or ''}"
    with container(engine, name, options, command):
        asker = asker_of(engine, name, connections)
        yield asker
        sh(f"{engine} stop -t 20 {name}")
        status = sh(f"{engine} inspect -f '{{{{.State.ExitCode}}}}' {name}").strip()
        assert status == "0", f"{name} ended with {status}"


def asker_of(engine: str, name: str, connections: int = CONNECTIONS) -> Asker:
    container_id = identity(engine, name)
    return Asker(
        lambda: sh(f"{engine} logs --tail 20 {name} 2>&1"),
        lambda found: container_id in found.get("client_cgroup", ""),
        connections,
    )


def check_app_to_database(engine: str) -> None:
    """In one network: from the first message on, until it is disabled, and once it is on again."""
    with (
        container(engine, "db", "--network shop"),
        app(engine, "db:6379", "--network shop") as asker,
    ):
        (first, *_) = check_accelerated(asker, joined=False)
        assert first["netns"] != first["server_netns"]
        check_listed(engine, "app", "db")
        check_disabled_without_loss(asker)
        sh(ENABLE)
        check_accelerated(asker, joined=True)


def check_host_to_container(engine: str) -> None:
    """By the container's address, and by a published port on the host's address in its network."""
    with container(engine, "db", "--network shop -p 16379:6379"):
        inside = f"{address(engine, 'db', 'shop')}:6379"
        for dialled in (inside, f"{gateway(engine, 'db', 'shop')}:16379"):
            with on_host(dialled) as asker:
                for found in check_accelerated(asker, joined=False):
                    assert found["server"] == dialled
                    assert found.get("accepted_at", dialled) == inside
                if dialled != inside:
                    check_disabled_without_loss(asker)


def check_listed(engine: str, *containers: str) -> None:
    """A list has the short id of each, as its engine prints it."""
    listing = sh("sockredirctl list")
    for name in containers:
        assert identity(engine, name)[:12] in listing
