"""Runs a test's body in a forked child, so that nothing but the child enters a test cgroup.

The child inherits the fixtures, so a body may use its generation directly. What it changes in
Python objects stays in the child; what it changes in the kernel stays.
"""

from __future__ import annotations

import faulthandler
import functools
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection as Channel
from pathlib import Path
from typing import Any, TypeVar

import pytest

from support import cgroups
from support.child import Child, receive_result, send_result
from support.emulated import PATIENCE

Test = TypeVar("Test", bound=Callable[..., None])
TIMEOUT_S = 60.0
_DUMP_AHEAD_S = 1.0


def _body(
    channel: Channel,
    stacks: int,
    timeout: float,
    cgroup: Path | None,
    function: Callable[[], Any],
) -> None:
    faulthandler.dump_traceback_later(timeout - _DUMP_AHEAD_S, file=stacks)
    if cgroup is not None:
        cgroups.join(cgroup)
    send_result(channel, function)


def run(
    function: Callable[..., Any],
    *arguments: Any,
    cgroup: Path | None = None,
    timeout: float = TIMEOUT_S,
    **keywords: Any,
) -> Any:
    """Result of `function` in a child, inside `cgroup` if given; fails the test if it raised.

    A child that does not answer in `timeout` seconds is killed, and the test fails with its stacks.
    """
    timeout *= PATIENCE
    call = functools.partial(function, *arguments, **keywords)
    with (
        tempfile.TemporaryFile("w+") as stacks,
        Child(_body, stacks.fileno(), timeout, cgroup, call) as child,
    ):
        if not child.channel.poll(timeout):
            stacks.seek(0)
            pytest.fail(
                f"{function.__qualname__} hung for {timeout:.0f} s, its threads:\n{stacks.read()}",
                pytrace=False,
            )
        return receive_result(child.channel)


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
