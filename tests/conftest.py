"""What every run of the tests begins with; the fixtures are in support/fixtures.py."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

# both ways of starting pytest, with and without `python3 -m`, find the packages of this checkout
REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))
# dbus_next, which tests import themselves, cannot be imported on newer Pythons before this is
import_module("sockredirctl")

pytest_plugins = ("support.fixtures",)

# whoever starts the tests in the background has them, and all their children, ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)
# A loaded machine is no finding, so there is no deadline. A change passes or fails with the same
# examples each time; `make fuzz` looks for new ones, and keeps those that failed.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile(
    "new",
    deadline=None,
    database=DirectoryBasedExampleDatabase(str(REPOSITORY / "build" / "hypothesis")),
)
settings.load_profile("new" if "SOCKREDIR_FUZZ_S" in os.environ else "same")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """SOCKREDIR_PART=2/5 leaves the second of each five: where processors are emulated.

    No compiler runs then: it has, when the package was tried there.
    """
    if part := os.environ.get("SOCKREDIR_PART"):
        number, parts = map(int, part.split("/"))
        kept = items
        if parts > 1:
            kept = [item for item in items if not item.get_closest_marker("compiles")]
        kept = kept[number - 1 :: parts]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
