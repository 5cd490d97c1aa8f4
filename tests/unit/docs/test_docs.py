"""docs/architecture.md names files and functions; they have to be there."""

from __future__ import annotations

import re
from pathlib import Path

from support.checkout import REPOSITORY

TEXT = (REPOSITORY / "docs" / "architecture.md").read_text()
PLACES = [REPOSITORY / "sockredird", REPOSITORY / "sockredird" / "bpf", REPOSITORY / "sockredirctl"]


def find(name: str) -> Path:
    found = [place / name for place in (REPOSITORY, *PLACES) if (place / name).exists()]
    assert found, f"{name} is not there"
    return found[0]


def test_functions() -> None:
    named = re.findall(r"`([\w/]+\.(?:c|h|py)): (\w+)\(\)", TEXT)
    assert len(named) > 10
    for name, function in named:
        assert re.search(rf"\b{function}\(", find(name).read_text()), f"no {function}() in {name}"


def test_files() -> None:
    """Nothing on the map is gone."""
    for name in re.findall(r"`([\w/-]+(?:\.(?:c|h|py)|/))`", TEXT):
        find(name)
