"""Where a connection may run: each datapath has cgroups of its own, for servers and for clients.

Only what the benchmark starts ever enters those cgroups, so nothing else of the host is touched.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbus_next import Variant

from sockredird.kernel.cgroup import mount_point
from support import cgroups, textbook
from support.daemon.bus import private_bus
from support.daemon.client import Client
from support.daemon.process import DaemonProcess, toml
from support.traffic import free_port

TCP, OURS, TEXTBOOK, UNIX = "tcp", "sockredird", "textbook", "unix"
EXCLUDED, OUTSIDE, RETIRED = "excluded", "outside", "retired"
JOINED = "joined"  # connections that are older than Enable
TRACED = "traced"  # as sockredird, while somebody runs `sockredirctl trace`
AGAIN = "tcp again"  # the null hypothesis: as TCP, with cgroups of its own
DRAIN_TIMEOUT_S = 10.0
JOIN_TIMEOUT_S = 60.0  # both programs have to be seen polling, which takes some looks


@dataclass(frozen=True)
class Datapath:
    """`port` is where a server has to listen, 0 for any. `change` is called once connections are
    established and warm, before they are measured; `around` is there all the time; `unix` means a
    path instead of a port."""

    name: str
    server: Path
    client: Path
    port: int = 0
    unix: bool = False
    change: Callable[[], None] | None = None
    around: Callable[[], AbstractContextManager[None]] = nullcontext


@contextmanager
def _keeping_compiled(directory: Path) -> Iterator[None]:
    """In that directory, by this process and its children; see loader/cache.py."""
    before = os.environ.get("CACHE_DIRECTORY")
    os.environ["CACHE_DIRECTORY"] = str(directory)
    try:
        yield
    finally:
        del os.environ["CACHE_DIRECTORY"]
        if before is not None:
            os.environ["CACHE_DIRECTORY"] = before


class Host:
    """A daemon on a private bus and bpffs, the textbook's programs, and all the datapaths."""

    def __init__(self, stack: ExitStack, *, null: bool) -> None:
        """`null`: no program is attached anywhere, so all datapaths but UNIX are plain TCP."""
        self.scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="srt-bench-")))
        self.scratch.chmod(0o755)  # servers drop their privileges
        stack.enter_context(_keeping_compiled(self.cache))
        self._top = stack.enter_context(_cgroup_tree())
        _refuse_accelerated(self._top)
        self.bpffs = stack.enter_context(_bpffs(self.scratch / "bpf"))
        self.bus = stack.enter_context(private_bus())
        self.null = null
        self._excluded_port = free_port()
        self.datapaths = {
            TCP: self._datapath(TCP),
            AGAIN: self._datapath(AGAIN),
            OURS: self._datapath(OURS),
            TEXTBOOK: self._datapath(TEXTBOOK),
            UNIX: self._datapath(UNIX, unix=True),
        }
        ours, tcp = self.datapaths[OURS], self.datapaths[TCP]
        self.datapaths |= {
            EXCLUDED: Datapath(EXCLUDED, ours.server, ours.client, port=self._excluded_port),
            OUTSIDE: Datapath(OUTSIDE, ours.server, tcp.client),
            RETIRED: Datapath(
                RETIRED, ours.server, ours.client, change=self._retire, around=self._left
            ),
            JOINED: Datapath(
                JOINED, ours.server, ours.client, change=self._join, around=self._disabled
            ),
            TRACED: Datapath(TRACED, ours.server, ours.client, around=self._traced),
        }
        self.daemon: DaemonProcess
        self._start_daemon()
        stack.callback(lambda: self.daemon.close())
        if null:
            return
        stack.callback(self.call, "Disable")
        self.call("Enable")
        pins = self.bpffs / "textbook"
        stack.enter_context(textbook.attached(pins, self._top / TEXTBOOK))

    @property
    def cache(self) -> Path:
        """Of the daemon: compiled programs."""
        return self.scratch / "cache"

    def _datapath(self, name: str, *, unix: bool = False) -> Datapath:
        top = self._top / name.replace(" ", "-")
        for path in (top, top / "server", top / "client"):
            path.mkdir()
        return Datapath(name, top / "server", top / "client", unix=unix)

    def _configuration(self) -> Path:
        """Of a daemon that accelerates the cgroup of the datapath OURS."""
        path = self.scratch / "sockredird.toml"
        tables: dict[str, dict[str, Any]] = {
            "scope": {
                "cgroup": f"/{(self._top / OURS).relative_to(mount_point())}",
                "exclude_ports": [self._excluded_port],
            },
            "limits": {"drain_timeout_s": DRAIN_TIMEOUT_S},
            "paths": {
                "bpffs": str(self.bpffs / "sockredird"),
                "state": str(self.scratch / "state"),
                "runtime": str(self.scratch / "runtime"),
            },
        }
        path.write_text(toml(tables))
        return path

    def _start_daemon(self) -> None:
        log = self.scratch / "sockredird.log"
        self.daemon = DaemonProcess(self._configuration(), self.bus, log)
        self.daemon.await_message("READY=1")

    def restart_daemon(self) -> None:
        """Kills it and starts another one; returns when that is ready."""
        self.daemon.kill()
        self.daemon.close()
        self._start_daemon()

    def call(self, member: str, signature: str = "", *arguments: Any) -> Any:
        with Client(self.bus) as client:
            return client.call(member, signature, *arguments)

    def forget(self) -> None:
        """What was learned: listeners have random ports, which others may have had before."""
        self.call("Forget", "s", "")

    def redirected(self) -> int:
        """Messages so far."""
        return int(self.call("Stats")["redirected_messages"])

    @contextmanager
    def _traced(self) -> Iterator[None]:
        with Client(self.bus) as client:
            client.call("Subscribe")
            yield

    def _retire(self) -> None:
        """Takes live connections off the sockhash, with nothing of sockredird left around them."""
        if not self.null:
            self.call("Disable")

    @contextmanager
    def _left(self) -> Iterator[None]:
        yield
        if not self.null:
            self.call("Enable")

    @contextmanager
    def _disabled(self) -> Iterator[None]:
        if not self.null:
            self.call("Disable")
        yield

    def _join(self) -> None:
        """Returns when a live connection has joined that carries messages meanwhile."""
        if self.null:
            return
        before = self.call("Stats")["joined_connections"]
        self.call("Enable")
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while self.call("Stats")["joined_connections"] == before:
            if time.monotonic() > deadline:
                raise RuntimeError("no connection that is older than Enable has joined")
            time.sleep(0.05)

    @contextmanager
    def enabled_with(self, scope: dict[str, Any]) -> Iterator[None]:
        """Keys of [scope] and their values, by which it differs meanwhile; signature s."""
        if self.null or not scope:
            yield
            return
        self.call(
            "EnableWith", "a{sv}", {name: Variant("s", value) for name, value in scope.items()}
        )
        try:
            yield
        finally:
            self.call("EnableWith", "a{sv}", {"configured": Variant("b", True)})


def spawn(
    command: list[str], cgroup: Path, cpus: frozenset[int] | None = None, user: int | None = None
) -> subprocess.Popen[str]:
    """A process inside the cgroup, on those CPUs, with pipes for stdin and stdout."""

    def enter() -> None:
        cgroups.join(cgroup)
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)

    return subprocess.Popen(
        command,
        preexec_fn=enter,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def cpu_seconds(cgroup: Path) -> float:
    """CPU time of all that ever ran in the cgroup; the kernel keeps it without any controller."""
    for line in (cgroup / "cpu.stat").read_text().splitlines():
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    raise OSError(f"{cgroup}/cpu.stat has no usage_usec")


@contextmanager
def _cgroup_tree() -> Iterator[Path]:
    top = cgroups.create()
    try:
        yield top
    finally:
        for path in sorted(top.rglob("*"), reverse=True):
            if path.is_dir():
                cgroups.remove(path)
        cgroups.remove(top)


@contextmanager
def _bpffs(point: Path) -> Iterator[Path]:
    """A bpffs nobody else sees."""
    point.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


def _refuse_accelerated(cgroup: Path) -> None:
    """Plain TCP has to be plain: no sock_ops program may be in force in the benchmark's cgroups."""
    command = ["bpftool", "--json", "cgroup", "show", str(cgroup), "effective"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [p for p in json.loads(shown.strip() or "[]") if "sock_ops" in p.get("attach_type", "")]
    if found:
        sys.exit(
            "bench: a sock_ops program is attached to the root cgroup, so nothing here is plain "
            f"TCP ({found[0].get('name', 'unnamed')}): if it is sockredird's, sockredirctl disable"
        )


def end(process: subprocess.Popen[str]) -> None:
    """A server that does not end by itself."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
