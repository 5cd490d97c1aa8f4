"""A private cgroup with a child process, in which the kernel is tried."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sockredird.errors import SockredirError, UnsupportedKernel
from sockredird.kernel import cgroup, child

log = logging.getLogger(__name__)

ORDER_LIMIT_S = 15.0  # more than the start of the child and several timeouts of an exercise


class Unavailable(SockredirError):
    """The kernel cannot be tried here. That says nothing about the kernel."""


class Sandbox:
    """Gives orders to the child, whose sockets belong to `cgroup`."""

    def __init__(self, directory: Path, process: subprocess.Popen[str]) -> None:
        self.cgroup = directory
        self._process = process

    def order(self, name: str, **arguments: Any) -> dict[str, Any]:
        """The child's answer to an order of exercise.py. Raises Unavailable if there is none."""
        self.begin(name, **arguments)
        return self.finish(name)

    def begin(self, name: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # finish() reports it
            print(json.dumps({"order": name, **arguments}), file=self._process.stdin, flush=True)

    def finish(self, name: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        if poll.poll(ORDER_LIMIT_S * 1000):
            line = self._process.stdout.readline()
            if line:
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._process.kill()
        raise Unavailable(f"the exercise {name!r} has not answered; the daemon's log has more")


@contextmanager
def opened(root: Path) -> Iterator[Sandbox]:
    """A sandbox for the daemon that owns the bpffs directory `root`. Raises Unavailable.

    The child is started without waiting for it; it answers the first order when it is ready.
    """
    with _private_cgroup(root) as (directory, join):
        process = subprocess.Popen(
            child.command("sockredird.check.exercise", str(directory) if join else ""),
            env=child.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Sandbox(directory, process)
        finally:
            process.kill()
            process.communicate()


def clear(root: Path) -> None:
    """Removes the cgroup of a daemon that was killed while it had a sandbox."""
    with suppress(OSError, SockredirError):
        (cgroup.own() / _name(root)).rmdir()


def _name(root: Path) -> str:
    """The name of the cgroup. It depends on `root`, which each daemon has for itself."""
    return f"sockredird-check-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"


@contextmanager
def _private_cgroup(root: Path) -> Iterator[tuple[Path, bool]]:
    """A cgroup in which no other programs run, and whether the child has to move there.

    It is the daemon's own cgroup if nobody else is in it, as under systemd, where cgroupfs is
    read-only. Otherwise it is a new one below that.
    """
    try:
        own = cgroup.own()
    except UnsupportedKernel as error:
        raise Unavailable(f"no private cgroup: {error}") from error
    if _has_for_itself(own):
        yield own, False
        return
    directory = own / _name(root)
    try:
        directory.mkdir(exist_ok=True)  # a daemon that was killed may have left it
    except OSError as error:
        raise Unavailable(
            f"no private cgroup: other programs are in {own}, and one below it cannot be made: "
            f"{error.strerror}"
        ) from error
    try:
        yield directory, True
    finally:
        try:
            directory.rmdir()
        except OSError as error:
            log.warning("%s is not removed until the next start: %s", directory, error.strerror)


def _has_for_itself(directory: Path) -> bool:
    if directory == cgroup.mount_point() or any(path.is_dir() for path in directory.iterdir()):
        return False
    if os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()):
        return True  # we are the main process of a service; only its ExecReload= may be there, too
    pids = map(int, (directory / "cgroup.procs").read_text().split())
    return all(map(_is_ours, pids))


def _is_ours(pid: int) -> bool:
    me = os.getpid()
    try:
        return pid == me or f"\nPPid:\t{me}\n" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return pid != 0  # 0: it is in another pid namespace; otherwise it has ended
