"""What the suite found on a kernel: results/<series>.json, of which docs/semantics.md is made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Notes = dict[str, Any]
# {"plain": notes, "differs": {variant: notes}}
Found = dict[str, Any]


def running_series() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


def name(series: tuple[int, int]) -> str:
    return f"{series[0]}.{series[1]}"


def path(directory: Path, series: tuple[int, int]) -> Path:
    return directory / f"{name(series)}.json"


def read(file: Path) -> dict[str, Found]:
    """Empty if the kernel has no results."""
    if not file.exists():
        return {}
    found: dict[str, Found] = json.loads(file.read_text())
    return found


def write(file: Path, found: dict[str, Found]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def all_recorded() -> dict[tuple[int, int], dict[str, Found]]:
    """By kernel series, oldest first."""
    files = {}
    for file in RESULTS.glob("*.json"):
        major, minor = file.stem.split(".")
        files[int(major), int(minor)] = read(file)
    return dict(sorted(files.items()))
