"""All datapaths of one run: daemons, the textbook's programs, and cgroups."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dbus_next import DBusError

from bench.accelerator import Accelerator
from bench.datapaths import AGAIN, MESH, OURS, TCP, TEXTBOOK, UNIX, Datapath, of_base
from support import cgroups, textbook
from support.checkout import REPOSITORY

MESH_SOURCE = Path(__file__).parent / "load" / "mesh.bpf.c"


class Host:
    def __init__(self, stack: ExitStack, *, null: bool, base: Path | None = None) -> None:
        """`null`: no program is attached anywhere, so all datapaths but UNIX are plain TCP.

        `base`: another checkout, whose datapaths are there as well.
        """
        self.scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="srt-bench-")))
        self.scratch.chmod(0o755)  # servers drop their privileges
        self._stack = stack
        self._top = stack.enter_context(_cgroup_tree())
        _refuse_accelerated(self._top)
        self._bpffs = stack.enter_context(_bpffs(self.scratch / "bpf"))
        self.null = null
        plain = {name: self._datapath(name) for name in (TCP, AGAIN, TEXTBOOK, MESH)}
        self.datapaths = plain | {UNIX: replace(self._datapath(UNIX), unix=True)}
        self.ours = self._accelerator(OURS, REPOSITORY)
        self.base = self._accelerator(of_base(OURS), base) if base else None
        if not null:
            stack.enter_context(textbook.attached(self.pins(TEXTBOOK), self._top / TEXTBOOK))
            stack.enter_context(textbook.attached(self.pins(MESH), self._top / MESH, MESH_SOURCE))

    def _datapath(self, name: str) -> Datapath:
        top = self._top / name.replace(" ", "-")
        for path in (top, top / "server", top / "client"):
            path.mkdir()
        return Datapath(name, top / "server", top / "client")

    def _accelerator(self, name: str, checkout: Path) -> Accelerator:
        inside = self._datapath(name)
        directory = inside.server.parent.name
        found = Accelerator(
            self._stack,
            inside.server.parent,
            self.scratch / directory,
            self._bpffs / directory,
            checkout=checkout,
            null=self.null,
        )
        for kind, path in found.datapaths(inside, self.datapaths[TCP]).items():
            known = kind if name == OURS else of_base(kind)
            self.datapaths[known] = replace(path, name=known)
        return found

    def pins(self, name: str) -> Path:
        """A directory on the BPF file system; that of the textbook's programs by TEXTBOOK."""
        return self._bpffs / name

    @property
    def accelerators(self) -> list[Accelerator]:
        return [self.ours, self.base] if self.base else [self.ours]

    @contextmanager
    def enabled_with(self, scope: dict[str, str]) -> Iterator[None]:
        """Keys of [scope] and their values, by which it differs meanwhile."""
        with ExitStack() as stack:
            for accelerator in self.accelerators:
                # one of an older checkout that does not know a key stays as it is
                with suppress(DBusError) if accelerator is self.base else nullcontext():
                    stack.enter_context(accelerator.enabled_with(scope))
            yield

    def redirected(self) -> int:
        """Messages so far, by the daemon of this checkout."""
        return self.ours.redirected()

    def call(self, member: str, signature: str = "", *arguments: Any) -> Any:
        return self.ours.call(member, signature, *arguments)


@contextmanager
def _cgroup_tree() -> Iterator[Path]:
    top = cgroups.create()
    try:
        yield top
    finally:
        for path in sorted(top.rglob("*"), reverse=True):
            if path.is_dir():
                cgroups.remove(path)
        cgroups.remove(top)


@contextmanager
def _bpffs(point: Path) -> Iterator[Path]:
    """A bpffs nobody else sees."""
    point.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


def _refuse_accelerated(cgroup: Path) -> None:
    """Plain TCP has to be plain: no sock_ops program may be in force in the benchmark's cgroups."""
    command = ["bpftool", "--json", "cgroup", "show", str(cgroup), "effective"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [p for p in json.loads(shown.strip() or "[]") if "sock_ops" in p.get("attach_type", "")]
    if found:
        sys.exit(
            "bench: a sock_ops program is attached to the root cgroup, so nothing here is plain "
            f"TCP ({found[0].get('name', 'unnamed')}): if it is sockredird's, sockredirctl disable"
        )
