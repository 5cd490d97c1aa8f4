"""A forked child in a cgroup that carries out functions one by one, on the test's word.

What the functions keep between calls are globals of their modules, in the child.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection as Channel
from pathlib import Path
from typing import Any

import pytest

from support import cgroups
from support.child import Child, receive_result, send_result
from support.emulated import PATIENCE

TIMEOUT_S = 30.0 * PATIENCE


def _serve(channel: Channel, stacks: int, cgroup: Path | None) -> None:
    faulthandler.register(signal.SIGUSR1, stacks)
    if cgroup is not None:
        cgroups.join(cgroup)
    while True:
        try:
            function, arguments = channel.recv()
        except EOFError:
            return
        send_result(channel, function, *arguments)


class Actor(Child):
    def __init__(self, cgroup: Path | None = None) -> None:
        # filled by a child that does not answer, with the stacks of its threads
        self._stacks = tempfile.TemporaryFile("w+")  # noqa: SIM115
        super().__init__(_serve, self._stacks.fileno(), cgroup)

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Result of a module-level function in the child; fails the test if it raised or hung."""
        self.begin(function, *arguments)
        return self.finish()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.channel.send((function, arguments))

    def finish(self) -> Any:
        if not self.channel.poll(TIMEOUT_S):
            os.kill(self.pid, signal.SIGUSR1)
            self.channel.poll(1)
            self._stacks.seek(0)
            pytest.fail(f"no answer for {TIMEOUT_S:.0f} s:\n{self._stacks.read()}", pytrace=False)
        return receive_result(self.channel)

    def close(self) -> None:
        super().close()
        self._stacks.close()

    def __enter__(self) -> Actor:
        return self
