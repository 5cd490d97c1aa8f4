"""Steps of every operation fail, and are the last one of the daemon; `make torture` takes all.

After each, a fresh manager converges to the state before, the state wanted or none, byte-checked
traffic has lost nothing, and nothing is left behind that nobody owns.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection as Channel
from pathlib import Path

import pytest

from bus.lifecycle import trickle
from bus.lifecycle.faults import FAIL, KILL, Faults
from sockredird.config import Config, Limits, Paths, Scope
from sockredird.control.manager import DISABLED, ENABLED, Manager
from sockredird.errors import SockredirError
from sockredird.kernel.cgroup import mount_point
from sockredird.loader import compiler
from support import processes
from support.child import Child
from support.daemon import pins
from support.daemon.actor import Actor
from support.emulated import EMULATED

CONVERSATIONS = 4
# every step by `make torture`; else some, failing and killing at different ones
STRIDE = 1 if "SOCKREDIR_TORTURE" in os.environ else 73 if EMULATED else 13
_numbers = itertools.count(1)


@dataclass
class Ground:
    """A host for managers: directories, a cgroup, and traffic in it that renews itself."""

    config: Config
    root: Path
    traffic: Actor

    def manager(self) -> Manager:
        self.root.mkdir(mode=0o700, exist_ok=True)
        return Manager(self.config, lambda: None)


@pytest.fixture
def ground(cgroup: Path, bpffs: Path, tmp_path: Path) -> Iterator[Ground]:
    root = bpffs / f"faults-{next(_numbers)}"
    config = Config(
        scope=Scope(cgroup=f"/{cgroup.relative_to(mount_point())}"),
        limits=Limits(max_connections=1024, drain_timeout_s=20.0),
        paths=Paths(bpffs=str(root), state=str(tmp_path / "state"), runtime=str(tmp_path / "run")),
    )
    before = pins.machine()
    with Actor(cgroup) as traffic:
        traffic.do(trickle.start, CONVERSATIONS)
        yield Ground(config, root, traffic)
        traffic.do(trickle.finish)
    pins.tear_down(root)
    if root.exists():
        root.rmdir()
    after = pins.machine()
    made = pins.Ids(
        after.programs - before.programs,
        after.maps - before.maps,
        after.links - before.links,
    )
    pins.await_release(made, ours=bpffs)


def other_code() -> None:
    """As if the daemon had been upgraded: the same program, from other source."""
    real = compiler.source()
    compiler.source = lambda: real + f"\n/* {os.getpid()} */\n"


def enable(manager: Manager) -> None:
    manager.enable()


def disable(manager: Manager) -> None:
    manager.disable()


def other_limits(manager: Manager) -> None:
    limits = Limits(max_connections=1025 + os.getpid() % 1024, drain_timeout_s=20.0)
    before = manager.config
    manager.reload(Config(scope=before.scope, limits=limits, paths=before.paths))


def nothing(manager: Manager) -> None:
    """The operation is the start itself."""


# name -> (enabled before?, runs as an upgraded daemon?, operation, states it may end in)
OPERATIONS: dict[str, tuple[bool, bool, Callable[[Manager], None], set[str]]] = {
    "enable": (False, False, enable, {DISABLED, ENABLED}),
    "disable": (True, False, disable, {DISABLED, ENABLED}),
    "reload": (True, False, other_limits, {ENABLED}),
    "adopt": (True, False, nothing, {ENABLED}),
    "upgrade": (True, True, nothing, {ENABLED}),
}


def settle(ground: Ground, *, enabled: bool) -> str:
    """A fresh manager takes over, as after a restart, and is brought to a state; what it found."""

    def body() -> str:
        manager = ground.manager()
        manager.start()
        found = manager.state
        assert not manager.draining, "a generation does not drain"
        assert manager.live is None or not manager.live.problem(), manager.live.problem()
        wanted = {manager.live.directory.name} if manager.live else set()
        assert {path.name for path in ground.root.iterdir()} == wanted, "something is left behind"
        if enabled:
            manager.enable()
        else:
            manager.disable()
        assert manager.state == (ENABLED if enabled else DISABLED)
        return found

    return str(processes.run(body))


def operate(channel: Channel, ground: Ground, name: str, index: int, mode: str) -> None:
    """The child of attempt(): sends whether the step was reached, and what the operation raised."""
    _, upgraded, operation, _ = OPERATIONS[name]
    if upgraded:
        other_code()
    manager = ground.manager()
    faults = Faults(index, mode)
    raised = ""
    if operation is nothing:
        faults.arm()
    try:
        manager.start()
        faults.arm()
        operation(manager)
    except (SockredirError, OSError) as error:  # the caller gets both
        raised = f"{faults.hit}: {error}"
    faults.disarm()
    channel.send((bool(faults.hit), raised))


def attempt(ground: Ground, name: str, index: int, mode: str) -> tuple[bool, str]:
    """The operation in a child whose `index`-th step goes wrong; whether it has that many.

    With KILL the child ends at that step, and nothing else may end it.
    """
    with Child(operate, ground, name, index, mode) as child:
        try:
            reached, raised = child.channel.recv()
        except EOFError:
            assert (child.wait(), mode) == (-signal.SIGKILL, KILL), f"step {index} {mode}"
            return True, "killed"
        assert child.wait() == 0, f"step {index} {mode}: {raised}"
        return reached, raised


@pytest.mark.parametrize("mode", [FAIL, KILL])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_step(ground: Ground, name: str, mode: str) -> None:
    enabled, _, _, allowed = OPERATIONS[name]
    settle(ground, enabled=enabled)
    for index in itertools.count(1 if mode == FAIL else STRIDE // 2 + 1, STRIDE):
        ground.traffic.do(trickle.renew)  # something is accelerated, if it is enabled
        reached, said = attempt(ground, name, index, mode)
        found = settle(ground, enabled=enabled)
        if not reached:
            break
        assert found in allowed, f"step {index} {mode} ({said}): {found}"
    assert index > 5, "the faults were not armed"
