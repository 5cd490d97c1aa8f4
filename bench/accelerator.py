"""A daemon of one checkout, on a bus of its own, that accelerates one cgroup of the benchmark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dbus_next import DBusError, Variant

from bench.datapaths import EXCLUDED, JOINED, OURS, OUTSIDE, RETIRED, TRACED, Datapath
from sockredird.kernel.cgroup import mount_point
from support.daemon.bus import private_bus
from support.daemon.client import Client
from support.daemon.process import DaemonProcess, toml
from support.traffic import free_port

DRAIN_TIMEOUT_S = 10.0
JOIN_TIMEOUT_S = 60.0  # both programs have to be seen polling, which takes some looks


class Accelerator:
    def __init__(
        self,
        stack: ExitStack,
        cgroup: Path,
        scratch: Path,
        bpffs: Path,
        *,
        checkout: Path,
        null: bool,
    ) -> None:
        """`scratch` and `bpffs` are directories to be made; `null`: it is never enabled."""
        for directory in (scratch, bpffs):
            directory.mkdir()
        scratch.chmod(0o755)  # servers drop their privileges
        self.bus = stack.enter_context(private_bus())
        self.bpffs = bpffs
        self.cgroup = cgroup
        self._scratch = scratch
        self._checkout = checkout
        self._null = null
        self._excluded_port = free_port()
        self.process: DaemonProcess
        self._start()
        stack.callback(lambda: self.process.close())
        if not null:
            stack.callback(self.call, "Disable")
            self.call("Enable")

    @property
    def cache(self) -> Path:
        """Of the daemon: compiled programs."""
        return self._scratch / "cache"

    def _configuration(self) -> Path:
        path = self._scratch / "sockredird.toml"
        tables: dict[str, dict[str, Any]] = {
            "scope": {
                "cgroup": f"/{self.cgroup.relative_to(mount_point())}",
                "exclude_ports": [self._excluded_port],
            },
            "limits": {"drain_timeout_s": DRAIN_TIMEOUT_S},
            "paths": {
                "bpffs": str(self.bpffs),
                "state": str(self._scratch / "state"),
                "runtime": str(self._scratch / "runtime"),
            },
        }
        path.write_text(toml(tables))
        return path

    def _start(self) -> None:
        self.process = DaemonProcess(
            self._configuration(),
            self.bus,
            self._scratch / "sockredird.log",
            PYTHONPATH=str(self._checkout),
            PYTHONSAFEPATH="1",  # or Python would look in the working directory first
            CACHE_DIRECTORY=str(self.cache),
        )
        self.process.await_message("READY=1")

    def restart(self) -> None:
        """Kills it and starts another one; returns when that is ready."""
        self.process.kill()
        self.process.close()
        self._start()

    def call(self, member: str, signature: str = "", *arguments: Any) -> Any:
        with Client(self.bus) as client:
            return client.call(member, signature, *arguments)

    def forget(self) -> None:
        """What was learned: listeners have random ports, which others may have had before."""
        self.call("Forget", "s", "")

    def redirected(self) -> int:
        """Messages so far."""
        return int(self.call("Stats")["redirected_messages"])

    def datapaths(self, inside: Datapath, outside: Datapath) -> dict[str, Datapath]:
        """By name: `inside`, which is in its cgroup, and its variants; `outside` is not in it."""
        return {
            OURS: inside,
            EXCLUDED: replace(inside, port=self._excluded_port),
            OUTSIDE: replace(inside, client=outside.client),
            RETIRED: replace(inside, change=self._retire, around=self._left),
            JOINED: replace(inside, change=self._join, around=self._disabled),
            TRACED: replace(inside, around=self._traced),
        }

    @contextmanager
    def _traced(self) -> Iterator[None]:
        with Client(self.bus) as client:
            client.call("Subscribe")
            yield

    def _retire(self, _connections: int) -> None:
        """Takes live connections off the sockhash, with nothing of sockredird left around them."""
        if not self._null:
            self.call("Disable")

    @contextmanager
    def _left(self) -> Iterator[None]:
        yield
        if not self._null:
            self.call("Enable")

    @contextmanager
    def _disabled(self) -> Iterator[None]:
        if not self._null:
            self.call("Disable")
        yield

    def _join(self, connections: int) -> None:
        """Returns when so many live ones have joined, which carry messages meanwhile."""
        if self._null:
            return
        wanted = self.call("Stats")["joined_connections"] + connections
        self.call("Enable")
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while (joined := self.call("Stats")["joined_connections"]) < wanted:
            if time.monotonic() > deadline:
                missing = f"{wanted - joined} of {connections}"
                raise RuntimeError(f"{missing} connections that are older than Enable did not join")
            time.sleep(0.05)

    @contextmanager
    def enabled_with(self, scope: dict[str, str]) -> Iterator[None]:
        """Keys of [scope] and their values, by which it differs meanwhile.

        Raises DBusError if the daemon does not know a key.
        """
        if self._null or not scope:
            yield
            return
        self.call("EnableWith", "a{sv}", {name: Variant("s", v) for name, v in scope.items()})
        try:
            yield
        finally:
            try:
                self.call("EnableWith", "a{sv}", {"configured": Variant("b", True)})
            except DBusError as error:
                if not error.type.endswith(".InvalidConfig"):
                    raise
                self.call("Enable")  # of an older checkout that has no such key; it does that there
