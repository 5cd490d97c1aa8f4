"""packaging/debian/control has the maintainers' address; only the changelog repeats it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from support.checkout import REPOSITORY

DEBIAN = REPOSITORY / "packaging" / "debian"
HAVE_IT = {DEBIAN / "control", DEBIAN / "changelog"}
NOT_SOURCES = {"build", "dist", "__pycache__"}


def maintainer() -> str:
    found = re.search(r"^Maintainer: (.+ <\S+@\S+>)$", (DEBIAN / "control").read_text(), re.M)
    assert found, "packaging/debian/control names no maintainer with an address"
    return found[1]


def files(directory: Path) -> Iterator[Path]:
    for path in directory.iterdir():
        hidden = path.name.startswith(".") and path.name != ".ci"
        if hidden or path.name in NOT_SOURCES or path.is_symlink():
            continue
        if path.is_dir():
            yield from files(path)
        elif path.is_file():
            yield path


def containing(text: str) -> set[Path]:
    return {path for path in files(REPOSITORY) if text.encode() in path.read_bytes()}


def test_newest_entry_of_the_changelog() -> None:
    """dch takes the address from the environment of whoever runs it."""
    found = re.search(r"^ -- (.+>)  ", (DEBIAN / "changelog").read_text(), re.M)
    assert found and found[1] == maintainer()


def test_no_other_file_has_the_address() -> None:
    address = maintainer().partition("<")[2].rstrip(">")
    assert containing(address) == HAVE_IT


def test_a_file_that_has_it_would_be_found() -> None:
    assert Path(__file__) in containing("test_a_file_that_has_it_would_be_found")


def test_pyproject_names_nobody() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert not {"authors", "maintainers"} & set(project)
