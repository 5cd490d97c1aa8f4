"""Forked children: nowhere else do the tests fork.

A child inherits the fixtures, so what it runs may be any function of the test. What it changes in
Python objects stays in the child; what it changes in the kernel stays.
"""

from __future__ import annotations

import gc
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection as Channel
from types import TracebackType
from typing import Any, NoReturn

import pytest


class Child:
    """Runs body(channel, *arguments); `channel` connects the two processes, object by object.

    The child's exit status is 0, or 1 with a traceback on stderr if the body raised. As a context
    manager it kills what has not ended by then.
    """

    def __init__(self, body: Callable[..., None], *arguments: Any) -> None:
        self.channel, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self.channel.close()
            _run_and_exit(body, theirs, *arguments)
        theirs.close()
        self._reaped = False

    def wait(self) -> int:
        """Returns once the child has ended: its exit status, or a signal's number, negative."""
        _, status = os.waitpid(self.pid, 0)
        self._reaped = True
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """Kills the child unless wait() has returned; closing again does nothing."""
        if not self._reaped:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self.channel.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _run_and_exit(body: Callable[..., None], *arguments: Any) -> NoReturn:
    status = 1
    try:
        gc.freeze()  # the child must not finalise objects of its parent
        body(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # The interpreter does not shut down: it would run what the parent registered for its own
        # end, and wait for threads that are blocked in recv().
        os._exit(status)


def send_result(channel: Channel, function: Callable[..., Any], *arguments: Any) -> None:
    """Calls the function in the child; receive_result() in the parent returns what it returned."""
    try:
        channel.send((True, function(*arguments)))
    except BaseException:
        channel.send((False, traceback.format_exc()))


def receive_result(channel: Channel) -> Any:
    """What send_result() sent; fails the test if the function raised or the child has ended."""
    try:
        succeeded, value = channel.recv()
    except EOFError:
        pytest.fail("the child ended without an answer", pytrace=False)
    if not succeeded:
        pytest.fail(value, pytrace=False)
    return value
