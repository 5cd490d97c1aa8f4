"""Servers users have, started afresh for every run: each in the cgroup of a datapath."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.datapaths import Datapath, end, spawn
from support.daemon.process import PYTHON
from support.traffic import free_port

START_TIMEOUT_S = 20.0
SHARED_BUFFERS = "128MB"


@dataclass(frozen=True)
class Address:
    """Where a server listens: a TCP port of 127.0.0.1, and a path if it has a UNIX socket, too."""

    port: int
    path: Path


def _await(process: subprocess.Popen[str], family: int, address: str | tuple[str, int]) -> None:
    """Returns when the server accepts. Nothing of a strange program tells us but trying."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with socket.socket(family) as probe:
            if probe.connect_ex(address) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            output, errors = process.communicate()
            raise RuntimeError(f"{process.args!r} does not listen: {output}{errors}")
        time.sleep(0.005)


@contextmanager
def _serving(
    command: list[str], path: Datapath, address: Address, *, user: int | None = None
) -> Iterator[Address]:
    process = spawn(command, path.server, path.server_cpus, user)
    try:
        if path.unix:
            _await(process, socket.AF_UNIX, str(address.path))
        else:
            _await(process, socket.AF_INET, ("127.0.0.1", address.port))
        yield address
    finally:
        end(process)


def _fresh(scratch: Path, name: str) -> Address:
    path = scratch / f"{name}.socket"
    path.unlink(missing_ok=True)
    return Address(free_port(), path)


@contextmanager
def redis(path: Datapath, scratch: Path) -> Iterator[Address]:
    address = _fresh(scratch, "redis")
    command = [
        *("redis-server", "--bind", "127.0.0.1", "--port", str(address.port)),
        *("--unixsocket", str(address.path), "--dir", str(scratch)),
        *("--save", "", "--appendonly", "no"),
    ]
    with _serving(command, path, address):
        yield address


@contextmanager
def memcached(path: Datapath, scratch: Path) -> Iterator[Address]:
    address = _fresh(scratch, "memcached")
    where = ["-s", str(address.path), "-a", "777"] if path.unix else ["-p", str(address.port)]
    command = ["memcached", "-u", "root", "-U", "0", "-l", "127.0.0.1", "-t", "1", *where]
    with _serving(command, path, address):
        yield address


@contextmanager
def sockperf(path: Datapath, scratch: Path) -> Iterator[Address]:
    address = _fresh(scratch, "sockperf")
    command = ["sockperf", "server", "--tcp", "-i", "127.0.0.1", "-p", str(address.port)]
    with _serving(command, path, address):
        yield address


@contextmanager
def iperf3(path: Datapath, scratch: Path) -> Iterator[Address]:
    address = _fresh(scratch, "iperf3")
    command = ["iperf3", "--server", "--bind", "127.0.0.1", "--port", str(address.port)]
    with _serving(command, path, address):
        yield address


_NGINX = """
daemon off;
worker_processes 1;
pid {scratch}/nginx.pid;
error_log {scratch}/nginx.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 1000000000;
    client_body_temp_path {scratch}/nginx-body;
    proxy_temp_path {scratch}/nginx-proxy;
    fastcgi_temp_path {scratch}/nginx-fastcgi;
    uwsgi_temp_path {scratch}/nginx-uwsgi;
    scgi_temp_path {scratch}/nginx-scgi;
    upstream app {{
        server 127.0.0.1:{app};
        {upstream_keepalive}
    }}
    server {{
        listen 127.0.0.1:{port}{deferred};
        root {scratch}/www;
        location / {{ {location} }}
    }}
}}
"""
_PROXY = 'proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection "";'
_FASTCGI = "fastcgi_pass app; fastcgi_keep_conn on; fastcgi_param SCRIPT_FILENAME {script};"
_SCRIPT = "<?php echo str_repeat('x', 1024);"


@contextmanager
def nginx(
    path: Datapath,
    scratch: Path,
    *,
    app: Address | None = None,
    keep: bool = True,
    deferred: bool = False,
    php: bool = False,
) -> Iterator[Address]:
    """Serves a file of 1 KiB; or is a proxy before `app`, keeping its connections or not.

    `deferred`: with TCP_DEFER_ACCEPT. `php`: `app` speaks FastCGI.
    """
    address = _fresh(scratch, "nginx")
    name = "proxy" if app else "web"
    directory = scratch / f"nginx-{name}"
    (directory / "www").mkdir(parents=True, exist_ok=True)
    (directory / "www" / "index.html").write_text("x" * 1024)
    (directory / "www" / "index.php").write_text(_SCRIPT)
    location = ""
    if php:
        location = _FASTCGI.format(script=directory / "www" / "index.php")
    elif app:
        location = _PROXY if keep else "proxy_pass http://app;"
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _NGINX.format(
            scratch=directory,
            port=address.port,
            deferred=" deferred" if deferred else "",
            app=app.port if app else 1,
            upstream_keepalive="keepalive 64;" if keep else "",
            location=location,
        )
    )
    command = ["nginx", "-p", str(directory), "-c", str(configuration)]
    with _serving(command, path, address):
        yield address


_PHP_FPM = """
[global]
daemonize = no
error_log = {log}
[www]
user = www-data
group = www-data
listen = 127.0.0.1:{port}
pm = static
pm.max_children = 4
"""


@contextmanager
def php_fpm(path: Datapath, scratch: Path) -> Iterator[Address]:
    """Speaks FastCGI."""
    address = _fresh(scratch, "php-fpm")
    configuration = scratch / "php-fpm.conf"
    configuration.write_text(_PHP_FPM.format(log=scratch / "php-fpm.log", port=address.port))
    (program,) = sorted(Path("/usr/sbin").glob("php-fpm[0-9]*"))[-1:]
    with _serving([str(program), "--fpm-config", str(configuration)], path, address):
        yield address


GRPC_ECHO = Path(__file__).parent / "load" / "grpc_echo.py"


@contextmanager
def grpc(path: Datapath, scratch: Path) -> Iterator[Address]:
    process = spawn([PYTHON, str(GRPC_ECHO), "server"], path.server, path.server_cpus)
    try:
        assert process.stdout is not None
        yield Address(int(process.stdout.readline()), scratch)
    finally:
        end(process)


_APACHE = """
ServerRoot {directory}
ServerName localhost
PidFile {directory}/apache.pid
ErrorLog {directory}/apache.log
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
User www-data
Group www-data
DocumentRoot {directory}/www
"""


@contextmanager
def apache(path: Datapath, scratch: Path) -> Iterator[Address]:
    """Serves a file of 1 KiB; its listener has TCP_DEFER_ACCEPT unless told otherwise."""
    address = _fresh(scratch, "apache")
    directory = scratch / "apache"
    (directory / "www").mkdir(parents=True, exist_ok=True)
    (directory / "www" / "index.html").write_text("x" * 1024)
    configuration = directory / "apache.conf"
    configuration.write_text(
        _APACHE.format(directory=directory, port=address.port, modules="/usr/lib/apache2/modules")
    )
    with _serving(["apache2", "-DFOREGROUND", "-f", str(configuration)], path, address):
        yield address


_HAPROXY = """
global
    nbthread 1
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
def haproxy(path: Datapath, scratch: Path, app: Address) -> Iterator[Address]:
    """A proxy before `app` that keeps its connections, and does not splice."""
    address = _fresh(scratch, "haproxy")
    configuration = scratch / "haproxy.cfg"
    configuration.write_text(_HAPROXY.format(port=address.port, app=app.port))
    with _serving(["haproxy", "-db", "-f", str(configuration)], path, address):
        yield address


_PGBOUNCER = """
[databases]
postgres = host=127.0.0.1 port={server} dbname=postgres user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool}
"""


@contextmanager
def pgbouncer(path: Datapath, scratch: Path, server: Address, *, pool: int) -> Iterator[Address]:
    """A pool of connections to PostgreSQL."""
    address = _fresh(scratch, "pgbouncer")
    configuration = scratch / "pgbouncer.ini"
    configuration.write_text(_PGBOUNCER.format(port=address.port, server=server.port, pool=pool))
    user = pwd.getpwnam("postgres").pw_uid
    with _serving(["pgbouncer", "-q", str(configuration)], path, address, user=user):
        yield address


class Postgres:
    """One data directory, served from the cgroup of one datapath after the other."""

    def __init__(self, scratch: Path) -> None:
        self._user = pwd.getpwnam("postgres").pw_uid
        self._programs = _postgres_programs()
        self._scratch = scratch
        self._data = Path(tempfile.mkdtemp(prefix="postgres-", dir=scratch))
        os.chown(self._data, self._user, -1)
        self._sockets = scratch / "postgres-sockets"
        self._sockets.mkdir()
        os.chown(self._sockets, self._user, -1)
        self._as_postgres("initdb", "-D", str(self._data), "-A", "trust", "--no-sync")

    def _as_postgres(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            user=self._user,
            cwd=self._scratch,
            check=True,
            capture_output=True,
        )

    def populate(self, path: Datapath) -> None:
        """pgbench's tables, scale 10: 1,000,000 accounts."""
        with self.serving(path) as address:
            self._as_postgres(
                "pgbench", "-i", "-q", "-s", "10", "-h", "127.0.0.1", "-p", str(address.port)
            )

    @contextmanager
    def serving(self, path: Datapath) -> Iterator[Address]:
        """The address's path is a directory, as libpq wants it. Nothing waits for a disk."""
        port = free_port()
        settings = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._sockets,
            "shared_buffers": SHARED_BUFFERS,
            "fsync": "off",
            "synchronous_commit": "off",
            "autovacuum": "off",
            "checkpoint_timeout": "1d",
            "max_wal_size": "4GB",
        }
        command = [str(self._programs / "postgres"), "-D", str(self._data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        address = Address(port, self._sockets / f".s.PGSQL.{port}")
        with _serving(command, path, address, user=self._user):
            self._await_ready(port)
            yield Address(port, self._sockets)

    def _await_ready(self, port: int) -> None:
        """It listens before it answers."""
        ready = [str(self._programs / "pg_isready"), "-q", "-h", str(self._sockets)]
        deadline = time.monotonic() + START_TIMEOUT_S
        while subprocess.run([*ready, "-p", str(port)], check=False).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError("PostgreSQL does not answer")
            time.sleep(0.01)


def _postgres_programs() -> Path:
    """Debian keeps those of the server out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    if initdb is None:
        raise RuntimeError("PostgreSQL is not installed: apt install postgresql")
    return Path(initdb).parent
