"""Runs a test's body in a forked child, so that nothing but the child enters a test cgroup.

The child inherits the fixtures, so a body may use its generation directly. What it changes in
Python objects stays in the child; what it changes in the kernel stays.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import pytest

from support import cgroups
from support.emulated import PATIENCE

Test = TypeVar("Test", bound=Callable[..., None])
TIMEOUT_S = 60.0
_DUMP_AHEAD_S = 1.0


def _child(
    answers: Connection,
    stacks: int,
    timeout: float,
    cgroup: Path | None,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
) -> None:
    faulthandler.dump_traceback_later(timeout - _DUMP_AHEAD_S, file=stacks)
    gc.freeze()  # objects of the parent must not be finalised here
    try:
        if cgroup is not None:
            cgroups.join(cgroup)
        answers.send((True, function(*arguments, **keywords)))
    except BaseException:
        answers.send((False, traceback.format_exc()))
    answers.close()
    # no interpreter shutdown: it would wait for threads blocked in recv()
    os._exit(0)


def run(
    function: Callable[..., Any],
    *arguments: Any,
    cgroup: Path | None = None,
    timeout: float = TIMEOUT_S,
    **keywords: Any,
) -> Any:
    """Result of `function` in a child, inside `cgroup` if given; fails the test if it raised.

    A child that does not answer in time is killed, and the test fails with its stacks.
    """
    timeout *= PATIENCE
    answers, theirs = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryFile("w+") as stacks:
        pid = os.fork()
        if pid == 0:
            _child(theirs, stacks.fileno(), timeout, cgroup, function, arguments, keywords)
        theirs.close()
        try:
            if not answers.poll(timeout):
                stacks.seek(0)
                pytest.fail(
                    f"{function.__qualname__} hung for {timeout:.0f} s, its threads:\n"
                    f"{stacks.read()}",
                    pytrace=False,
                )
            try:
                succeeded, value = answers.recv()
            except EOFError:
                pytest.fail(f"{function.__qualname__}: the child died unheard", pytrace=False)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            answers.close()
    if not succeeded:
        pytest.fail(value, pytrace=False)
    return value


def inside(timeout: float = TIMEOUT_S) -> Callable[[Test], Test]:
    """The test's body runs in a child inside the test's `cgroup` fixture."""
    return _decorator(timeout, enter=True)


def outside(timeout: float = TIMEOUT_S) -> Callable[[Test], Test]:
    """The test's body runs in a child outside of it, and may join it half way."""
    return _decorator(timeout, enter=False)


def _decorator(timeout: float, enter: bool) -> Callable[[Test], Test]:
    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def wrapper(**fixtures: Any) -> None:
            cgroup = fixtures["cgroup"] if enter else None

            def body() -> None:
                test(**fixtures)

            run(functools.update_wrapper(body, test), cgroup=cgroup, timeout=timeout)

        return wrapper  # type: ignore[return-value]

    return decorate
