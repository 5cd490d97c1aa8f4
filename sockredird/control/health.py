"""What is wrong with the datapath, in words with a remedy, and what would put it right."""

from __future__ import annotations

from pathlib import Path

from sockredird.config import Scope
from sockredird.datapath.generation import Generation
from sockredird.errors import SockredirError
from sockredird.kernel import cgroup

OTHER_SOCKMAP = (
    "another BPF program had sockets in scope on a sockmap of its own, and they stay on TCP: "
    "detach it (bpftool cgroup tree, bpftool prog show), or leave its connections out of the "
    "scope; then sockredirctl enable"
)


class Health:
    """Others remove pins and cgroups, detach programs, take sockets. Looked at, never polled."""

    def __init__(self) -> None:
        self.outdated = ""  # why the live generation is not of this version
        self._displaced = 0  # its declined_other_sockmap when it was last enabled
        self._cgroup = 0  # id of the cgroup in scope when last looked for; 0: there was none

    def adopted(self, live: Generation) -> None:
        self._cgroup = next(iter(live.cgroups.values()), 0)

    def enabled(self, live: Generation) -> None:
        """Whatever was wrong is repaired, or has been taken note of."""
        self.outdated = ""
        self._displaced = _displacements(live)

    def find_cgroup(self, scope: Scope) -> Path:
        """The cgroup in scope. Raises InvalidConfig if it does not exist."""
        self._cgroup = 0
        path = cgroup.resolve(scope.cgroup)
        self._cgroup = cgroup.cgroup_id(path)
        return path

    def of_live(self, live: Generation) -> str:
        """Empty if nothing is wrong."""
        if problem := live.problem():
            return f"{problem}; sockredirctl enable repairs it"
        if _displacements(live) > self._displaced:
            return OTHER_SOCKMAP
        return self.outdated

    def of_disabled(self, scope: Scope) -> str:
        """Why Enable would fail, as far as that is easily told."""
        if scope.units:
            return ""
        try:
            self.find_cgroup(scope)
        except SockredirError as error:
            return str(error)
        return ""

    def awaited(self, scope: Scope) -> Path | None:
        """The cgroup in scope, if it is not that of the last attempt: gone, or made anew."""
        if scope.units:
            return None
        try:
            path = cgroup.directory(scope.cgroup)
            return None if cgroup.is_cgroup(path, self._cgroup) else path
        except (OSError, SockredirError):
            return None


def _displacements(live: Generation) -> int:
    return live.counters()["declined_other_sockmap"]
