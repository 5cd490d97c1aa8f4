"""The daemon's fixtures, and a trace to read beside them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from daemon.conftest import (  # noqa: F401
    Host,
    client,
    daemon,
    enabled,
    host,
    system_bus,
)
from daemon.process import PYTHON, REPOSITORY, environment

Answer = Any


class Trace:
    """`sockredirctl trace --json` as a child; subscribed when made."""

    def __init__(self, host: Host, witness: Callable[[], Any]) -> None:  # noqa: F811
        self._child = subprocess.Popen(
            [PYTHON, "-m", "sockredirctl", "trace", "--json"],
            env=environment(host.bus),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._child.stdout is not None
        self._lines = self._child.stdout
        self.events: list[dict[str, Any]] = []
        # it is heard of by the first event after the subscription took effect
        while not self.events:
            witness()
            os.set_blocking(self._lines.fileno(), False)
            self._read_available()
        os.set_blocking(self._lines.fileno(), True)

    def _read_available(self) -> None:
        import select

        poll = select.poll()
        poll.register(self._lines, select.POLLIN)
        while poll.poll(100):
            line = self._lines.readline()
            assert line, self._child.stderr.read() if self._child.stderr else ""
            self.events.append(json.loads(line))

    def until(self, done: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        while not done(self.events):
            line = self._lines.readline()
            assert line, "the trace has ended"
            self.events.append(json.loads(line))
        return self.events

    def await_event(self, kind: str, client: str = "", reason: str = "") -> dict[str, Any]:  # noqa: F811
        def wanted(event: dict[str, Any]) -> bool:
            return (
                event["event"] == kind
                and client in ("", event["client"])
                and reason in ("", event["reason"])
            )

        return next(filter(wanted, self.until(lambda events: any(map(wanted, events)))))

    def close(self) -> int:
        self._child.send_signal(2)
        try:
            return self._child.wait(10)
        finally:
            for stream in (self._child.stdout, self._child.stderr):
                if stream is not None:
                    stream.close()


@pytest.fixture
def tracing(host: Host) -> Iterator[Callable[[Callable[[], Any]], Trace]]:  # noqa: F811
    """Makes traces; their argument causes some event, for the trace to be seen working."""
    made: list[Trace] = []

    def make(witness: Callable[[], Any]) -> Trace:
        made.append(Trace(host, witness))
        return made[-1]

    yield make
    for trace in made:
        assert trace.close() == 0


@pytest.fixture
def ask(host: Host) -> Callable[..., Answer]:  # noqa: F811
    """What a reading command prints with --json."""

    def run(*arguments: str) -> Answer:
        done = host.ctl(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
