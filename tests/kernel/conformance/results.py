"""What the suite found on a kernel: results/<name>.json, from which docs/semantics.md is made.

The name is that of the series, with the architecture where it is not amd64: 6.12, 6.12-arm64.
"""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernel.conformance.catalogue import FRESH, LEFT, STATES, USED

# Of kernels whose results are older than that state.
BEFORE_JOINED = (FRESH, USED, LEFT)
RESULTS = Path(__file__).parent / "results"
# Debian's names of what uname(2) says
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Of results that name none
FIRST_ARCHITECTURE = "amd64"

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
    architecture: str = FIRST_ARCHITECTURE

    @property
    def series(self) -> Series:
        return self.version[:2]

    @property
    def name(self) -> str:
        """In documents; in a file name it has no spaces."""
        series = f"{self.version[0]}.{self.version[1]}"
        return (
            series if self.architecture == FIRST_ARCHITECTURE else f"{series} {self.architecture}"
        )


def running_version() -> Version:
    """Of the stable release; Debian's 12 says 6.1.0 for each, and the release beside it."""
    kernel = os.uname()
    found = re.search(r"Debian (\d+)\.(\d+)\.(\d+)", kernel.version) or re.match(
        r"(\d+)\.(\d+)(?:\.(\d+))?", kernel.release
    )
    assert found, kernel
    major, minor, patch = found.groups()
    return int(major), int(minor), int(patch or 0)


def running_architecture() -> str:
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


def path(directory: Path, name: str) -> Path:
    return directory / f"{name.replace(' ', '-')}.json"


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
    path(directory, kernel.name).write_text(text + "\n")


def recorded_kernel(name: str) -> Kernel:
    return _kernel(_content(path(RESULTS, name)))


def _kernel(content: dict[str, Any]) -> Kernel:
    facts = content["kernel"]
    major, minor, patch = facts["version"]
    return Kernel(
        (major, minor, patch),
        sees=facts["sees"],
        counts=facts.get("counts", False),
        ktls=facts["ktls"],
        states=tuple(facts.get("states", BEFORE_JOINED)),
        architecture=facts.get("architecture", FIRST_ARCHITECTURE),
    )


def is_newer(kernel: Kernel) -> bool:
    """Than the release of its series that has results."""
    recorded = path(RESULTS, kernel.name)
    return recorded.exists() and kernel.version > recorded_kernel(kernel.name).version


def all_recorded() -> dict[str, dict[str, Found]]:
    """By name, oldest kernel first, and those of other architectures after all of the first."""
    contents = [_content(file) for file in RESULTS.glob("*.json")]
    named = {_kernel(content): content["found"] for content in contents}

    def order(kernel: Kernel) -> tuple[bool, str, Series]:
        other = kernel.architecture != FIRST_ARCHITECTURE
        return other, kernel.architecture, kernel.series

    return {kernel.name: named[kernel] for kernel in sorted(named, key=order)}
