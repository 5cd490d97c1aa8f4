"""What is wrong with the datapath, as a sentence with a remedy."""

from __future__ import annotations

from pathlib import Path

from sockredird.config import Scope
from sockredird.datapath.generation import Generation
from sockredird.errors import SockredirError
from sockredird.kernel import cgroup

OTHER_SOCKMAP = (
    "another BPF program has put sockets in scope on its own sockmap, so they stay on TCP: "
    "detach that program (bpftool cgroup tree, bpftool prog show), or leave its connections out "
    "of the scope; then run sockredirctl enable"
)


class Health:
    """Finds what others did: removed pins or cgroups, detached programs, took sockets.

    The caller asks when something has happened; nothing is polled.
    """

    def __init__(self) -> None:
        self.outdated = ""  # why the live generation is still that of another version
        self._displaced = 0  # the live generation's declined_other_sockmap at the last Enable
        self._cgroup = 0  # id of the cgroup in scope at the last attempt; 0: it did not exist

    def adopted(self, live: Generation) -> None:
        self._cgroup = next(iter(live.cgroups.values()), 0)

    def enabled(self, live: Generation) -> None:
        """Forgets what was wrong: Enable has repaired it, or has reported it."""
        self.outdated = ""
        self._displaced = _displacements(live)

    def find_cgroup(self, scope: Scope) -> Path:
        """The cgroup in scope. Raises InvalidConfig if it does not exist."""
        self._cgroup = 0
        path = cgroup.resolve(scope.cgroup)
        self._cgroup = cgroup.cgroup_id(path)
        return path

    def of_live(self, live: Generation) -> str:
        """What is wrong with the live generation; empty if nothing is."""
        if problem := live.problem():
            return f"{problem}; sockredirctl enable repairs it"
        if _displacements(live) > self._displaced:
            return OTHER_SOCKMAP
        return self.outdated

    def of_disabled(self, scope: Scope) -> str:
        """Why Enable would fail; empty if no reason is known without trying."""
        if scope.units:
            return ""
        try:
            self.find_cgroup(scope)
        except SockredirError as error:
            return str(error)
        return ""

    def awaited(self, scope: Scope) -> Path | None:
        """The cgroup in scope if it is missing, or is another than at the last attempt."""
        if scope.units:
            return None
        try:
            path = cgroup.directory(scope.cgroup)
            return None if cgroup.is_cgroup(path, self._cgroup) else path
        except (OSError, SockredirError):
            return None


def _displacements(live: Generation) -> int:
    return live.counters()["declined_other_sockmap"]
