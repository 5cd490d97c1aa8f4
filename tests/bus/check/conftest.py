"""The daemon's fixtures, and daemons made from changed sources."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.checkout import REPOSITORY

Edit = tuple[str, str, str]  # file, text in it, text in its place


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[list[Edit]], dict[str, str]]:
    """Variables for Host.start() that make it start a copy of this checkout, with some edits."""

    def copy(edits: list[Edit]) -> dict[str, str]:
        package = tmp_path / "edited" / "sockredird"
        shutil.copytree(REPOSITORY / "sockredird", package)
        for name, old, new in edits:
            text = (package / name).read_text()
            assert old in text, f"{name} has no {old!r}: the test has to follow"
            (package / name).write_text(text.replace(old, new))
        # PYTHONSAFEPATH: not from the working directory, which is this checkout
        return {"PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1"}

    return copy
