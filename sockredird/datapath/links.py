"""The cgroup links of a generation: each makes the sockets of one cgroup run one program.

    attached-<program>-<cgroup id>

A link is live while its pin exists, and its cgroup or a socket of it does; then the kernel detaches
it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sockredird.errors import LoadFailed
from sockredird.kernel import libbpf
from sockredird.kernel.cgroup import Names
from sockredird.kernel.libbpf import Fd
from sockredird.kernel.uapi import AttachType, LinkType
from sockredird.loader.shapes import ATTACHMENTS

DETACHED = 0  # cgroup id of a link whose cgroup and sockets are gone, or that was detached by force
_NAME = re.compile(r"attached-([a-z]+)-(\d+)")


def _name(program: str, number: int) -> str:
    return f"attached-{program}-{number}"


def _parts(name: str) -> tuple[str, int]:
    """The program, and the id of the cgroup, that a link is named after."""
    match = _NAME.fullmatch(name)
    assert match is not None
    return match[1], int(match[2])


def is_link(name: str) -> bool:
    """Whether a pin of this name is a cgroup link of ours."""
    match = _NAME.fullmatch(name)
    return match is not None and match[1] in ATTACHMENTS


def pinned(directory: Path) -> list[Path]:
    """All pins of cgroup links, none if the directory is gone."""
    if not directory.exists():
        return []
    return sorted(path for path in directory.iterdir() if is_link(path.name))


def refuse(path: Path, found: object, expected: object) -> LoadFailed:
    return LoadFailed(f"{path}: found {found}, expected {expected}")


def check(directory: Path, pins: dict[str, Fd]) -> None:
    """Raises LoadFailed unless each link is of the program and the cgroup it is named after."""
    for path in pinned(directory):
        program, number = _parts(path.name)
        with libbpf.open_pin(path) as fd:
            if libbpf.object_kind(fd) != "link":
                raise refuse(path, libbpf.object_kind(fd), "link")
            info = libbpf.link_info(fd)
        cgroup = info.detail.cgroup
        found = (info.type, info.prog_id, cgroup.attach_type, cgroup.cgroup_id)
        made = (int(LinkType.CGROUP), libbpf.prog_info(pins[program]).id, ATTACHMENTS[program])
        if found not in ((*made, number), (*made, DETACHED)):
            raise refuse(
                path, f"link (type, program, attach type, cgroup) = {found}", (*made, number)
            )


def runs(directory: Path, program: str) -> bool:
    """Whether the sockets of any cgroup run the program."""
    return any(_parts(name)[0] == program for name in live(directory))


def live(directory: Path) -> set[str]:
    """Names of the links whose cgroup is still there."""
    found = set()
    for path in pinned(directory):
        with libbpf.open_pin(path) as fd:
            if libbpf.link_info(fd).detail.cgroup.cgroup_id != DETACHED:
                found.add(path.name)
    return found


def complete(directory: Path, number: int) -> bool:
    """Whether the sockets of the cgroup of this id run all programs."""
    return {_name(program, number) for program in ATTACHMENTS} <= live(directory)


def attach(directory: Path, pins: dict[str, Fd], cgroup: Path) -> int:
    """Makes the links of one cgroup that are missing. Returns the cgroup's id.

    Raises OSError if it is gone, LoadFailed if the kernel refuses.
    """
    with Fd(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)) as cgroup_fd:
        number = os.fstat(cgroup_fd.number).st_ino
        for program, attach_type in ATTACHMENTS.items():
            path = directory / _name(program, number)
            if path.exists():
                continue
            # without the pin, the link would end with this descriptor
            with _make(pins[program], cgroup, cgroup_fd, attach_type) as link:
                libbpf.pin(link, path)
        return number


@contextmanager
def held(pins: dict[str, Fd], cgroup: Path) -> Iterator[None]:
    """The links of one cgroup, not pinned: they end with the with block, or with this process.

    Raises as attach().
    """
    with ExitStack() as stack:
        cgroup_fd = stack.enter_context(Fd(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)))
        for program, attach_type in ATTACHMENTS.items():
            stack.enter_context(_make(pins[program], cgroup, cgroup_fd, attach_type))
        yield


def _make(program: Fd, cgroup: Path, cgroup_fd: Fd, attach_type: AttachType) -> Fd:
    try:
        return libbpf.create_cgroup_link(program, cgroup_fd, attach_type)
    except PermissionError as error:
        raise LoadFailed(
            f"the kernel refuses a {attach_type.name} program on {cgroup}: another one is attached "
            "to it, or to a cgroup above, exclusively; see bpftool cgroup tree"
        ) from error


def keep_only(directory: Path, numbers: Collection[int]) -> None:
    """Detaches from all cgroups that exist, but those of these ids.

    A cgroup that was removed keeps its links until its last socket is gone: the programs have to
    see its connections end. The kernel detaches them then, and the next call removes the pins.
    """
    wanted = {_name(program, number) for program in ATTACHMENTS for number in numbers}
    attached = live(directory)
    there = Names()
    for path in pinned(directory):
        if path.name in wanted:
            continue
        _, number = _parts(path.name)
        if path.name not in attached or there.path(number):
            path.unlink(missing_ok=True)
