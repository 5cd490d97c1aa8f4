"""What the suite found on a kernel: results/<series>.json, of which docs/semantics.md is made."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Series = tuple[int, int]
Notes = dict[str, Any]
# {"plain": notes, "differs": {variant: notes}}
Found = dict[str, Any]


@dataclass(frozen=True)
class Kernel:
    """What a difference may depend on."""

    series: Series
    sees: bool  # fentry programs notice what no setsockopt announces
    ktls: bool


def running_series() -> Series:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


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
    facts = {"sees": kernel.sees, "ktls": kernel.ktls}
    text = json.dumps({"kernel": facts, "found": found}, indent=1, ensure_ascii=False)
    path(directory, kernel.series).write_text(text + "\n")


def recorded_kernel(series: Series) -> Kernel:
    return Kernel(series, **_content(path(RESULTS, series))["kernel"])


def all_recorded() -> dict[Series, dict[str, Found]]:
    """By kernel series, oldest first."""
    files = {}
    for file in RESULTS.glob("*.json"):
        major, minor = file.stem.split(".")
        files[int(major), int(minor)] = read(file)
    return dict(sorted(files.items()))
