"""What the kernel's memory looks like is known in one file."""

from __future__ import annotations

from sockredird.loader.header import BPF_DIR


def test_offsets_of_the_kernel_are_used_in_one_file() -> None:
    files = [path for path in BPF_DIR.rglob("*.[ch]") if "OFF_" in path.read_text()]
    assert [path.name for path in files] == ["kernel.h"]
