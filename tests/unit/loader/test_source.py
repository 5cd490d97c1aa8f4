"""The program text comes together wherever the package is, and by whichever path it is reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from sockredird.loader import compiler


def test_through_a_symbolic_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directly = compiler.source()
    link = tmp_path / "bpf"
    link.symlink_to(compiler.BPF_DIR)
    monkeypatch.setattr(compiler, "BPF_DIR", link)
    assert compiler.source() == directly
    assert '#line 1 "pair/pair.c"' in directly
