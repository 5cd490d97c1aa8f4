"""Other builds of the project to upgrade to: copies whose BPF code differs."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.checkout import REPOSITORY


def other_build(directory: Path, code: str) -> Path:
    """A copy in `directory` with `code` at the end of that of the datapath."""
    build = directory / "other-build"
    for package in ("sockredird", "sockredirctl"):
        shutil.copytree(REPOSITORY / package, build / package)
    with (build / "sockredird" / "bpf" / "datapath.c").open("a") as source:
        source.write(f"{code}\n")
    return build


def run_from(build: Path) -> dict[str, str]:
    """Environment for a daemon of that build."""
    # SAFEPATH: not the packages of the working directory
    return {"PYTHONPATH": str(build), "PYTHONSAFEPATH": "1"}
