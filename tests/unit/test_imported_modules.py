"""Who imports what: BCC and LLVM stay out of the daemon, and pydantic out of the client."""

from __future__ import annotations

import subprocess

import pytest

from support.checkout import REPOSITORY
from support.daemon.process import PYTHON, environment


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("sockredirctl.__main__", {"bcc", "pydantic", "sockredird"}),
        ("sockredird.__main__", {"bcc"}),
        ("sockredird.service.daemon", {"bcc", "sockredirctl"}),
    ],
)
def test_imports(module: str, unwanted: set[str]) -> None:
    code = f"import {module}, sys; print(*(name.partition('.')[0] for name in sys.modules))"
    done = subprocess.run(
        [PYTHON, "-c", code],
        env=environment(""),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = set(done.stdout.split())
    assert module.partition(".")[0] in imported
    assert not imported & unwanted
