"""A host that is too busy to compile the programs is no kernel that is unfit."""

from __future__ import annotations

from pathlib import Path

import pytest

from sockredird.check.kernel_check import KernelCheck
from sockredird.loader import compiler


@pytest.mark.parametrize("seconds", [0.01, compiler.TIMEOUT_S], ids=["too slow", "in time"])
def test_nothing_is_known_against_the_kernel(
    bpffs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(compiler, "TIMEOUT_S", seconds)
    root = bpffs / "checked"
    found = {one.name: one for one in KernelCheck(root, tmp_path).run(list, lambda job: job())}
    root.rmdir()
    assert "fail" not in {one.status for one in found.values()}
    if seconds < 1:
        assert found["trial"].status == "warn"
        assert "the kernel was not tried: compiling" in found["trial"].detail
        assert "redirect" not in found
    else:
        assert found["redirect"].status == "pass"
