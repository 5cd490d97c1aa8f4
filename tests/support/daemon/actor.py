"""A forked child in a cgroup that carries out functions one by one, on the test's word.

What the functions keep between calls are globals of their modules, in the child.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from support import cgroups
from support.emulated import PATIENCE

TIMEOUT_S = 30.0 * PATIENCE


def _serve(orders: Connection, cgroup: Path | None) -> None:
    if cgroup is not None:
        cgroups.join(cgroup)
    while True:
        try:
            function, arguments = orders.recv()
        except EOFError:
            return
        try:
            orders.send((True, function(*arguments)))
        except BaseException:
            orders.send((False, traceback.format_exc()))


class Actor:
    def __init__(self, cgroup: Path | None = None) -> None:
        # asked for the stacks of a child that does not answer
        self._stacks = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._orders, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            faulthandler.register(signal.SIGUSR1, self._stacks)
            self._orders.close()
            gc.freeze()  # objects of the parent must not be finalised here
            try:
                _serve(theirs, cgroup)
            finally:
                # no interpreter shutdown: it would wait for threads blocked in recv()
                os._exit(0)
        theirs.close()

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Result of a module-level function in the child; fails the test if it raised or hung."""
        self.begin(function, *arguments)
        return self.finish()

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._orders.send((function, arguments))

    def finish(self) -> Any:
        if not self._orders.poll(TIMEOUT_S):
            os.kill(self.pid, signal.SIGUSR1)
            self._orders.poll(1)
            self._stacks.seek(0)
            pytest.fail(f"no answer for {TIMEOUT_S:.0f} s:\n{self._stacks.read()}", pytrace=False)
        try:
            succeeded, value = self._orders.recv()
        except EOFError:
            pytest.fail("the child died unheard", pytrace=False)
        if not succeeded:
            pytest.fail(value, pytrace=False)
        return value

    def close(self) -> None:
        if self.pid == 0:
            return  # a test ended it already
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.pid = 0
        self._orders.close()
        self._stacks.close()

    def __enter__(self) -> Actor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
