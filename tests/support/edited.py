"""Generations made from changed C: to attack a rule more often, or to see what it is there for."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from sockredird.datapath.generation import Generation
from sockredird.kernel import child
from support.checkout import REPOSITORY
from support.datapath import plan, tear_down

Edit = tuple[str, str, str]  # file below bpf/, text in it, text in its place
_numbers = itertools.count(1)


@contextmanager
def generation_of(
    edits: Sequence[Edit], bpffs: Path, cgroup: Path, directory: Path, **settings: Any
) -> Iterator[Generation]:
    """A live generation over `cgroup`, with keywords of plan(); the sources go in `directory`."""
    package = directory / f"edited-{next(_numbers)}" / "sockredird"
    shutil.copytree(REPOSITORY / "sockredird", package)
    for name, old, new in edits:
        path = package / "bpf" / name
        text = path.read_text()
        assert old in text, f"{name} has no {old!r}: the test has to follow"
        path.write_text(text.replace(old, new))
    environment = {**child.environment(), "PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1"}
    with mock.patch.object(child, "environment", lambda: environment):
        root = bpffs / f"edited-{directory.name}"  # a forked test counts by itself
        made = Generation.create(root, next(_numbers), plan(cgroup, **settings))
    try:
        yield made
    finally:
        made.close()
        tear_down(made.directory)
        root.rmdir()
