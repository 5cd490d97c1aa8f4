"""exclude_cgroups as the datapath looks them up: by their names from the root down.

Their ids would not do: a service's cgroup is made anew, with another id, each time it starts, and
has to be excluded from its first socket on, whether the daemon runs at that moment or not.
"""

from __future__ import annotations

from collections.abc import Iterable

from sockredird.errors import InvalidConfig
from sockredird.kernel.cgroup import components
from sockredird.loader.header import record
from sockredird.loader.records import EXCLUDED
from sockredird.loader.shapes import CAPACITIES


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
            step = _step(at, name)
            if step not in found:
                directories += 1
                found[step] = directories
            at = found[step]
            if at == EXCLUDED:
                break
        else:
            found[_step(at, last)] = EXCLUDED
    if len(found) > CAPACITIES["EXCLUDED_STEPS"]:
        raise InvalidConfig(
            f"scope.exclude_cgroups: more than {CAPACITIES['EXCLUDED_STEPS']} directories in all "
            "paths: exclude a cgroup above several of them"
        )
    return found


def _step(directory: int, name: str) -> bytes:
    return record("step").pack(directory=directory, name=name.encode())
