"""mounts.py reads mountinfo as the kernel writes it (show_mountinfo(), fs/proc_namespace.c)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockredird.kernel import mounts
from sockredird.kernel.mounts import Mount

ESCAPED = b" \t\n\\"  # seq_path_root(m, ..., " \t\n\\")
names = st.binary(min_size=1, max_size=30).filter(lambda name: not set(name) & set(b"\0/"))
paths = st.lists(names, max_size=4).map(lambda parts: b"/" + b"/".join(parts))
devices = st.tuples(st.integers(0, 4095), st.integers(0, 1 << 20)).map("{0[0]}:{0[1]}".format)
filesystems = st.sampled_from(["cgroup2", "bpf", "tmpfs", "fuse.sshfs", "ext4"])
optional = st.lists(st.sampled_from(["shared:1", "master:20", "unbindable"]), max_size=3)


def escape(raw: bytes) -> bytes:
    return b"".join(b"\\%03o" % byte if byte in ESCAPED else bytes([byte]) for byte in raw)


def line(device: str, point: bytes, filesystem: str, tags: list[str]) -> bytes:
    fields = [b"36", b"35", device.encode(), b"/", escape(point), b"rw,noatime"]
    fields += [tag.encode() for tag in tags]
    return b" ".join([*fields, b"-", filesystem.encode(), b"none", b"rw"])


entries = st.tuples(devices, paths, filesystems, optional)


@given(made=st.lists(entries, max_size=5))
def test_every_mount_is_read_back(
    made: list[tuple[str, bytes, str, list[str]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """From the file's bytes: no name a directory can have hides a mount."""
    table = tmp_path_factory.getbasetemp() / "mountinfo"
    table.write_bytes(b"".join(line(*entry) + b"\n" for entry in made))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mounts, "MOUNTINFO", table)
        found = mounts.mounts()
    assert found == [
        Mount(device, Path(os.fsdecode(point)), filesystem)
        for device, point, filesystem, _tags in made
    ]


@pytest.mark.parametrize("separator", ["\r", "\v", "\f", "\x1c", "\x85", "\u2028"])
def test_only_newlines_end_lines(tmp_path: Path, separator: str) -> None:
    """The kernel escapes no other character that Python takes for the end of a line."""
    odd = f"/home/eve/{separator}37"
    table = tmp_path / "mountinfo"
    table.write_bytes(
        line("0:50", os.fsencode(odd), "fuse", [])
        + b"\n"
        + line("0:26", b"/sys/fs/cgroup", "cgroup2", [])
        + b"\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mounts, "MOUNTINFO", table)
        found = mounts.mounts()
    assert [mount.filesystem for mount in found] == ["fuse", "cgroup2"]
    assert found[0].point == Path(odd)


@given(st.text(max_size=200))
def test_garbage_is_passed_over(text: str) -> None:
    mounts.parse(text)


def test_this_machine() -> None:
    assert any(mount.point == Path("/proc") for mount in mounts.mounts())
    assert mounts.filesystem_of(Path("/proc/self")) == "proc"
