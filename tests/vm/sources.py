"""Where Debian comes from: the mirror this machine's apt uses, for the other suites, too."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def codename() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise LookupError("/etc/os-release names no release")


def mirror() -> str:
    lines = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(RELEASE) $(SITE)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for line in lines:
        release, _, site = line.partition(" ")
        if release == codename():
            return site
    raise LookupError(f"apt has no source for {codename()}: run apt-get update")


def line(suite: str) -> str:
    return f"deb [signed-by={KEYRING}] {mirror()} {suite} main"


def install_from_backports(packages: list[str], directory: Path) -> None:
    """Installs with backports as a source for this once; its index is kept in `directory`."""
    lists = directory / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    sources = directory / "sources.list"
    suites = (codename(), f"{codename()}-backports")
    sources.write_text("".join(f"{line(suite)}\n" for suite in suites))
    apt = [
        "apt-get",
        "-q",
        *("-o", f"Dir::Etc::SourceList={sources}"),
        *("-o", "Dir::Etc::SourceParts=/dev/null"),
        *("-o", f"Dir::State::lists={lists}"),
    ]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run(
        [*apt, "install", "-y", "--no-install-recommends", "-t", suites[1], *packages],
        check=True,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
    )
