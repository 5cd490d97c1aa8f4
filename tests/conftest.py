"""Fixtures: a private bpffs, a private cgroup, and a datapath on it, ours or the textbook's."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# both ways of starting pytest, with and without `python3 -m`, find the packages of this checkout
sys.path.insert(0, str(Path(__file__).parents[1]))

from sockredird.datapath.generation import Generation
from sockredird.datapath.plan import Plan
from sockredird.errors import UnsupportedKernel
from sockredird.loader import cache as compiled
from sockredird.loader import compiler
from support import cgroups, textbook
from support.emulated import EMULATED, PATIENCE

# whoever starts the tests in the background has them, and all their children, ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("any-load", deadline=None)  # a loaded machine is no finding
settings.load_profile("any-load")

RETIRE_TIMEOUT_S = 10.0 * PATIENCE
_numbers = itertools.count(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """SOCKREDIR_PART=2/5 leaves the second of each five: where processors are emulated.

    No compiler runs then: it has, when the package was tried there.
    """
    if part := os.environ.get("SOCKREDIR_PART"):
        number, parts = map(int, part.split("/"))
        kept = items
        if parts > 1:
            kept = [item for item in items if not item.get_closest_marker("compiles")]
        kept = kept[number - 1 :: parts]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def _refuse_to_skip(reason: str) -> None:
    # a suite that skips everything looks green
    pytest.exit(f"the datapath cannot be tested here: {reason}", returncode=3)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What has been compiled for one test need not be for the next; see loader/cache.py.

    Nor what an installed daemon has compiled, where that takes a minute.
    """
    directory = tmp_path_factory.mktemp("cache")
    if EMULATED and compiled.directory().exists():
        shutil.copytree(compiled.directory(), directory, dirs_exist_ok=True)
    os.environ["CACHE_DIRECTORY"] = str(directory)


@pytest.fixture(scope="session", autouse=True)
def patience() -> None:
    compiler.TIMEOUT_S *= PATIENCE


@pytest.fixture(scope="session")
def capable() -> None:
    """This machine can run the datapath; otherwise the whole run ends."""
    if os.geteuid() != 0:
        _refuse_to_skip("run the tests as root (BPF, cgroups and namespaces need it)")
    if not Path("/sys/kernel/btf/vmlinux").exists():
        _refuse_to_skip("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")
    try:
        cgroups.remove(cgroups.create())
    except (UnsupportedKernel, OSError) as error:
        _refuse_to_skip(f"no child cgroup can be made on cgroup2: {error}")


@pytest.fixture(scope="session")
def bpffs(capable: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bpffs nobody else sees; unmounting it lets go of whatever a test left pinned."""
    point = tmp_path_factory.mktemp("bpffs")
    mount = subprocess.run(
        ["mount", "-t", "bpf", "bpf", str(point)], capture_output=True, text=True, check=False
    )
    if mount.returncode != 0:
        _refuse_to_skip(f"cannot mount a bpffs: {mount.stderr.strip()}")
    yield point
    subprocess.run(["umount", str(point)], check=True)
    point.rmdir()


@pytest.fixture
def cgroup(capable: None) -> Iterator[Path]:
    path = cgroups.create()
    yield path
    cgroups.remove(path)


@pytest.fixture
def other_cgroup(capable: None) -> Iterator[Path]:
    """A sibling of `cgroup`: out of scope."""
    path = cgroups.create()
    yield path
    cgroups.remove(path)


def plan(
    cgroup: Path,
    *,
    excluded_ports: frozenset[int] = frozenset(),
    addresses: str = "loopback",
    exclude_cgroups: tuple[str, ...] = (),
    max_connections: int = 65536,
    window_bytes: int = 4 << 20,
    learn: bool = True,
) -> Plan:
    return Plan(
        scope={},
        cgroups=(cgroup,),
        ports=frozenset(range(65536)) - excluded_ports,
        addresses=addresses,
        exclude_cgroups=exclude_cgroups,
        max_connections=max_connections,
        window_bytes=window_bytes,
        learn=learn,
    )


def tear_down(directory: Path) -> None:
    # the test's child may have stopped it or moved its epoch on: the pins know, our object does not
    generation = Generation.adopt(directory)
    generation.stop()
    empty = generation.retire(RETIRE_TIMEOUT_S, lambda walked: walked.entries == 0)
    assert empty, f"sockets stay on the sockhash: {generation.walk()}"
    generation.remove()


@pytest.fixture
def generation(bpffs: Path, cgroup: Path, request: pytest.FixtureRequest) -> Iterator[Generation]:
    """A live generation over `cgroup`; an indirect parameter holds keywords of plan()."""
    marker = request.node.get_closest_marker("plan")
    settings = {**(marker.kwargs if marker else {}), **getattr(request, "param", {})}
    generation = Generation.create(bpffs / "ours", next(_numbers), plan(cgroup, **settings))
    yield generation
    generation.close()
    tear_down(generation.directory)


@dataclass(frozen=True)
class Datapath:
    """What the traffic of an oracle-checked test runs over."""

    cgroup: Path
    generation: Generation | None  # None: the textbook, which has to be seen failing

    @property
    def is_textbook(self) -> bool:
        return self.generation is None


@pytest.fixture(params=["textbook", "ours"])
def datapath(bpffs: Path, cgroup: Path, request: pytest.FixtureRequest) -> Iterator[Datapath]:
    """First the textbook datapath, then ours, over the same cgroup and for the same traffic."""
    with ExitStack() as stack:
        if request.param == "textbook":
            stack.enter_context(textbook.attached(bpffs / f"textbook-{next(_numbers)}", cgroup))
            yield Datapath(cgroup, None)
            return
        yield Datapath(cgroup, request.getfixturevalue("generation"))
