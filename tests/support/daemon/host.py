"""What a daemon needs of a host: a bus, a cgroup, a bpffs, directories; and who talks to it."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sockredird.kernel.cgroup import mount_point
from support.checkout import REPOSITORY
from support.daemon.actor import Actor
from support.daemon.client import Client
from support.daemon.process import PYTHON, WARNINGS, DaemonProcess, Tables, environment, toml
from support.emulated import PATIENCE

_numbers = itertools.count(1)
CTL_TIMEOUT_S = 40.0 * PATIENCE


@dataclass
class Host:
    """What a daemon needs of a host, all of it the test's own; makes daemons, clients, traffic."""

    cgroup: Path
    bus: str
    root: Path  # [paths] bpffs
    directory: Path
    stack: ExitStack
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def runtime(self) -> Path:
        return self.directory / "runtime"

    @property
    def scope(self) -> str:
        return f"/{self.cgroup.relative_to(mount_point())}"

    def tables(self) -> Tables:
        tables: dict[str, dict[str, Any]] = {
            # much of the tests' traffic reads by recv() without a poll()
            "scope": {"cgroup": self.scope, "blocking_readers": "accelerate"},
            "limits": {"drain_timeout_s": 10.0},
            "paths": {
                "bpffs": str(self.root),
                "state": str(self.state),
                "runtime": str(self.runtime),
            },
        }
        for name, table in self.overrides.items():
            tables.setdefault(name, {}).update(table)
        return tables

    def configure(self, text: str | None = None) -> Path:
        path = self.directory / "sockredird.toml"
        path.write_text(toml(self.tables()) if text is None else text)
        return path

    def launch(
        self, config: Path | None = None, bus: str = "", under: Sequence[str] = (), **more: str
    ) -> DaemonProcess:
        """Starts a daemon and does not wait for it."""
        log = self.directory / f"stderr-{next(_numbers)}"
        daemon = DaemonProcess(
            config or self.configure(), bus or self.bus, log, under=under, **more
        )
        self.stack.callback(daemon.close)
        return daemon

    def start(self, under: Sequence[str] = (), **more: str) -> DaemonProcess:
        """Starts a daemon; returns when it is ready."""
        daemon = self.launch(None, "", under, **more)
        daemon.await_message("READY=1")
        return daemon

    def client(self, address: str = "") -> Client:
        return self.stack.enter_context(Client(address or self.bus))

    def actor(self, cgroup: Path | None = None) -> Actor:
        """A child inside the cgroup in scope, or in another."""
        return self.stack.enter_context(Actor(cgroup or self.cgroup))

    def ctl(self, *arguments: str, bus: str = "") -> subprocess.CompletedProcess[str]:
        with self.ctl_process(*arguments, bus=bus) as process:
            stdout, stderr = process.communicate(timeout=CTL_TIMEOUT_S)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    @contextmanager
    def ctl_process(self, *arguments: str, bus: str = "") -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [PYTHON, *WARNINGS, "-m", "sockredirctl", *arguments],
            env=environment(
                bus or self.bus, SOCKREDIRD_CONFIG=str(self.directory / "sockredird.toml")
            ),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()  # nothing, if it has ended
