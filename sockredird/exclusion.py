"""exclude_cgroups as the datapath looks them up: by their names from the root down.

Not by their ids: a service's cgroup is made anew, with another id, each time it starts, and has to
be excluded from its first socket on, whether the daemon runs at that moment or not.
"""

from __future__ import annotations

from collections.abc import Iterable

from sockredird.errors import InvalidConfig
from sockredird.layout import EXCLUDED, EXCLUDED_STEPS, STEP

NAME_SIZE = 126  # bytes; a longer name would look like another one once it is cut to fit
DEPTH = 16  # MAX_EXCLUDED_DEPTH


def components(cgroup: str) -> list[str]:
    """The names on the path of a cgroup. Raises InvalidConfig if that cannot be excluded."""
    names = [name for name in cgroup.split("/") if name]
    if not names or not cgroup.startswith("/") or {".", ".."} & {*names} or "\0" in cgroup:
        raise InvalidConfig(
            f"scope.exclude_cgroups: {cgroup!r} is no path of a cgroup below the root, "
            "like /system.slice/haproxy.service"
        )
    if len(names) > DEPTH or any(len(name.encode()) > NAME_SIZE for name in names):
        raise InvalidConfig(
            f"scope.exclude_cgroups: {cgroup!r} is deeper than {DEPTH} cgroups, or has a name of "
            f"more than {NAME_SIZE} bytes: exclude a cgroup above it"
        )
    return names


def steps(cgroups: Iterable[str]) -> dict[bytes, int]:
    """Map entries: struct step to the number of the directory it leads to, or EXCLUDED.

    Raises InvalidConfig for what cannot be excluded.
    """
    found: dict[bytes, int] = {}
    directories = 0
    for cgroup in cgroups:
        *above, last = components(cgroup)
        at = 0
        for name in above:
            step = STEP.pack(at, name.encode())
            if step not in found:
                directories += 1
                found[step] = directories
            at = found[step]
            if at == EXCLUDED:
                break
        else:
            found[STEP.pack(at, last.encode())] = EXCLUDED
    if len(found) > EXCLUDED_STEPS:
        raise InvalidConfig(f"scope.exclude_cgroups: more than {EXCLUDED_STEPS} cgroups")
    return found
