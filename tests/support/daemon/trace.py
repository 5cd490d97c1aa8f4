"""`sockredirctl trace` beside a test, whose events the test waits for."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from support.checkout import REPOSITORY
from support.daemon.host import Host
from support.daemon.process import PYTHON, environment

TIMEOUT_S = 10.0


class Trace:
    """`sockredirctl trace --json` as a child; subscribed when made."""

    def __init__(self, host: Host, witness: Callable[[], Any]) -> None:
        self._child = subprocess.Popen(
            [PYTHON, "-m", "sockredirctl", "trace", "--json"],
            env=environment(host.bus),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.events: list[dict[str, Any]] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        # the first event shows that the subscription has taken effect
        for _ in range(100):
            witness()
            if self._wait(lambda events: bool(events), 0.2):
                return
        raise AssertionError("the trace shows nothing")

    @property
    def pid(self) -> int:
        return self._child.pid

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            with self._more:
                self.events.append(json.loads(line))
                self._more.notify_all()

    def _wait(self, done: Callable[[list[dict[str, Any]]], bool], timeout: float) -> bool:
        with self._more:
            return self._more.wait_for(lambda: done(self.events), timeout)

    def until(self, done: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        assert self._wait(done, TIMEOUT_S), self.events[-5:]
        return list(self.events)

    def await_event(self, kind: str, client: str = "", reason: str = "") -> dict[str, Any]:
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
            self._child.kill()
            self._reader.join(10)
            for stream in (self._child.stdout, self._child.stderr):
                if stream is not None:
                    stream.close()
