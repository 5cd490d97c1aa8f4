"""What the suite found on a kernel: results/<series>.json, from which docs/semantics.md is made."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernel.conformance.catalogue import FRESH, LEFT, STATES, USED

# Of kernels whose results are older than that state.
BEFORE_JOINED = (FRESH, USED, LEFT)
RESULTS = Path(__file__).parent / "results"

Series = tuple[int, int]
Version = tuple[int, int, int]
Notes = dict[str, Any]
# {"plain": notes, "differs": {variant: notes}}
Found = dict[str, Any]


@dataclass(frozen=True)
class Kernel:
    """What a difference may depend on."""

    version: Version
    sees: bool  # fentry programs notice what no setsockopt announces
    ktls: bool
    counts: bool = False  # FIONREAD's answer is put right (bpf/leave/fionread.c)
    states: tuple[str, ...] = STATES  # in which the suite was run there

    @property
    def series(self) -> Series:
        return self.version[:2]


def running_version() -> Version:
    """Of the stable release; Debian's 12 says 6.1.0 for each, and the release beside it."""
    kernel = os.uname()
    found = re.search(r"Debian (\d+)\.(\d+)\.(\d+)", kernel.version) or re.match(
        r"(\d+)\.(\d+)(?:\.(\d+))?", kernel.release
    )
    assert found, kernel
    major, minor, patch = found.groups()
    return int(major), int(minor), int(patch or 0)


def name(series: Series) -> str:
    return f"{series[0]}.{series[1]}"


def path(directory: Path, series: Series) -> Path:
    return directory / f"{name(series)}.json"


def read(file: Path) -> dict[str, Found]:
    """Empty if the kernel has no results."""
    found: dict[str, Found] = _content(file)["found"] if file.exists() else {}
    return found


def _content(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def write(directory: Path, kernel: Kernel, found: dict[str, Found]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    facts = asdict(kernel)
    text = json.dumps({"kernel": facts, "found": found}, indent=1, ensure_ascii=False)
    path(directory, kernel.series).write_text(text + "\n")


def recorded_kernel(series: Series) -> Kernel:
    facts = _content(path(RESULTS, series))["kernel"]
    return Kernel(
        (*series, facts["version"][2]),
        sees=facts["sees"],
        counts=facts.get("counts", False),
        ktls=facts["ktls"],
        states=tuple(facts.get("states", BEFORE_JOINED)),
    )


def is_newer(kernel: Kernel) -> bool:
    """Than the release of its series that has results."""
    recorded = path(RESULTS, kernel.series)
    return recorded.exists() and kernel.version > recorded_kernel(kernel.series).version


def all_recorded() -> dict[Series, dict[str, Found]]:
    """By kernel series, oldest first."""
    files = {}
    for file in RESULTS.glob("*.json"):
        major, minor = file.stem.split(".")
        files[int(major), int(minor)] = read(file)
    return dict(sorted(files.items()))
