"""The fixtures of all suites: a bpffs, cgroups and a datapath; a bus and a daemon on it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sockredird.datapath import detectors
from sockredird.datapath.generation import Generation
from sockredird.errors import UnsupportedKernel
from sockredird.loader import cache as compiled
from sockredird.loader import compiler
from support import cgroups, textbook
from support.daemon import pins
from support.daemon.bus import private_bus
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.daemon.trace import Trace
from support.datapath import Datapath, plan, tear_down
from support.emulated import EMULATED, PATIENCE
from support.kernel_facts import permits_map_iterators

LOG_SHOWN = 6000
_numbers = itertools.count(1)


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


@pytest.fixture(scope="session", autouse=True)
def begins_at_once() -> None:
    """Where calls can be seen, a listener's first connection begins late (carry/begin.h).

    Most tests make one connection and count its messages; test_late_begin.py has this rule.
    """
    detectors.LATE = frozenset({"nothing that is attached"})


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


@pytest.fixture
def map_iterators(capable: None) -> None:
    if not permits_map_iterators():
        pytest.skip("this kernel permits no iterators over maps")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory that servers can read which are not root."""
    with tempfile.TemporaryDirectory(prefix="programs-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="session")
def bpffs(capable: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bpffs that no other process sees; unmounting it frees whatever a test left pinned."""
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


@pytest.fixture
def generation(bpffs: Path, cgroup: Path, request: pytest.FixtureRequest) -> Iterator[Generation]:
    """A live generation over `cgroup`; an indirect parameter holds keywords of plan()."""
    marker = request.node.get_closest_marker("plan")
    settings = {**(marker.kwargs if marker else {}), **getattr(request, "param", {})}
    generation = Generation.create(bpffs / "ours", next(_numbers), plan(cgroup, **settings))
    yield generation
    generation.close()
    tear_down(generation.directory)


@pytest.fixture(params=["textbook", "ours"])
def datapath(bpffs: Path, cgroup: Path, request: pytest.FixtureRequest) -> Iterator[Datapath]:
    """First the textbook datapath, then ours, over the same cgroup and for the same traffic."""
    with ExitStack() as stack:
        if request.param == "textbook":
            stack.enter_context(textbook.attached(bpffs / f"textbook-{next(_numbers)}", cgroup))
            yield Datapath(cgroup, None)
            return
        yield Datapath(cgroup, request.getfixturevalue("generation"))


@pytest.fixture(scope="session")
def system_bus() -> Iterator[str]:
    """Address of a bus with the policy that is shipped."""
    with private_bus() as address:
        yield address


@pytest.fixture
def host(
    cgroup: Path,
    bpffs: Path,
    system_bus: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Host]:
    """An indirect parameter holds configuration tables that override those of Host.tables()."""
    overrides: Mapping[str, dict[str, Any]] = getattr(request, "param", {})
    root = bpffs / f"host-{next(_numbers)}"
    with ExitStack() as stack:
        host = Host(cgroup, system_bus, root, tmp_path, stack, dict(overrides))
        yield host
        # shown by pytest if the test failed
        for log in sorted(tmp_path.glob("stderr-*")):
            print(f"--- {log.name}\n{log.read_text()[-LOG_SHOWN:]}")
    # the children and the daemons have ended here, so nothing holds the connections any more
    pins.tear_down(root)
    if root.exists():
        root.rmdir()


@pytest.fixture
def daemon(host: Host) -> DaemonProcess:
    return host.start()


@pytest.fixture
def client(host: Host, daemon: DaemonProcess) -> Client:
    """Connected as root."""
    return host.client()


@pytest.fixture
def enabled(client: Client) -> Client:
    client.call("Enable")
    return client


@pytest.fixture
def tracing(host: Host) -> Iterator[Callable[[Callable[[], Any]], Trace]]:
    """Makes traces; their argument causes some event, for the trace to be seen working."""
    made: list[Trace] = []

    def make(witness: Callable[[], Any]) -> Trace:
        made.append(Trace(host, witness))
        return made[-1]

    yield make
    for trace in made:
        assert trace.close() == 0


@pytest.fixture
def ask(host: Host) -> Callable[..., Any]:
    """What a reading command prints with --json."""

    def run(*arguments: str) -> Any:
        done = host.ctl(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
