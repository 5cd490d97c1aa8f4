"""programs/ask.go, which asks redis on some connections and checks each answer byte by byte."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shell import sh
from status import called, redirected_both_ways, soon

PROGRAM = "/share/programs/ask"
CONNECTIONS = 4
ANSWERS = 50  # that are waited for on each connection; a message each way for one
Connection = dict[str, Any]


@dataclass(frozen=True)
class Asker:
    output: Callable[[], str]
    # of an entry of Connections(): it is one of this program's
    owns: Callable[[Connection], bool]
    connections: int = CONNECTIONS

    def progress(self) -> tuple[int, int]:
        """The connections that it has made, and the right answers that it has had."""
        found = re.findall(r"^(\d+) connections, (\d+) answers$", self.output(), re.MULTILINE)
        return (int(found[-1][0]), int(found[-1][1])) if found else (0, 0)

    @property
    def answers(self) -> int:
        return ANSWERS * self.connections

    def until_answered(self) -> None:
        """Returns when it has had so many more answers."""
        wanted = self.progress()[1] + self.answers
        soon(lambda: self.progress()[1] >= wanted, f"{wanted} answers: {self.output()[-500:]}")

    def redirecting(self) -> list[Connection]:
        """Those of its connections that are redirected in both directions."""
        return [found for found in redirected_both_ways() if self.owns(found)]


def check_accelerated(asker: Asker, *, joined: bool | None = None) -> list[Connection]:
    """All of its connections are redirected in both directions, and stay so; returns them.

    `joined` says whether they have to have been established before they were accelerated.
    """
    soon(
        lambda: len(asker.redirecting()) == asker.connections,
        f"{asker.connections} connections are accelerated: {called('Connections u 0')}",
    )
    before = asker.redirecting()
    asker.until_answered()
    after = asker.redirecting()
    assert len(after) == asker.connections
    for side in ("client", "server"):
        messages = [sum(found[f"{side}_sent_messages"] for found in a) for a in (before, after)]
        # but for those that revalidate, and those that find their reader behind
        assert messages[1] - messages[0] > asker.answers // 2, f"what the {side} sends goes by TCP"
    if joined is not None:
        assert {found["joined"] for found in after} == {joined}
    return after


def check_on_tcp(asker: Asker) -> None:
    """It gets answers, and none of its connections is redirected."""
    asker.until_answered()
    assert not asker.redirecting()


def check_disabled_without_loss(asker: Asker) -> None:
    """Its connections go on as TCP: none is closed, and no byte is wrong."""
    made = asker.progress()[0]
    sh("sockredirctl disable")
    asker.until_answered()
    assert asker.progress()[0] == made


@contextmanager
def on_host(address: str, connections: int = CONNECTIONS) -> Iterator[Asker]:
    """Outside of all containers."""
    with tempfile.NamedTemporaryFile(mode="r") as file:
        process = subprocess.Popen(
            [PROGRAM, address, str(connections)], stdout=file.fileno(), stderr=subprocess.STDOUT
        )
        try:
            yield Asker(
                lambda: Path(file.name).read_text(),
                lambda found: found.get("client_pid") == process.pid,
                connections,
            )
        finally:
            process.terminate()
            status = process.wait(20)
        assert status == 0, Path(file.name).read_text()[-500:]
