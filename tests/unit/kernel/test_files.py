"""Small files: replaced whole and through no link; damaged is not the same as unreadable."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sockredird.kernel import files


@contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # the next that would be given out
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "below" / "file.json"
    assert files.read(path) == {}
    files.write(path, {"a": 1})
    files.write(path, {"a": 2})
    assert files.read(path) == {"a": 2}
    assert [found.name for found in path.parent.iterdir()] == ["file.json"]


DAMAGED = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[1]",
    "no UTF-8": b'{"a": "\xff"}',
    "deep": b"[" * 100_000,
    "endless number": b'{"a": ' + b"1" * 5000 + b"}",
    "long": b" " * (files.SIZE_LIMIT + 1) + b"{}",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    assert files.read(path) == {}
    assert len(caplog.records) == 1


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    os.mkfifo(path)
    assert files.read(path) == {}


def test_unreadable_is_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    files.write(path, {"a": 1})
    with no_descriptors():
        for read in (files.read, files.read_or_empty):
            with pytest.raises(OSError) as caught:
                read(path)
            assert caught.value.errno == errno.EMFILE
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError):
        files.read(tmp_path / "loop")
    assert files.read_or_empty(tmp_path / "loop") == {}


@pytest.mark.parametrize("where", ["file.json", "file.json.new"])
def test_no_link_is_followed(tmp_path: Path, where: str) -> None:
    other = tmp_path / "other"
    other.write_text("of somebody else")
    (tmp_path / where).symlink_to(other)
    files.write(tmp_path / "file.json", {"a": 1})
    assert other.read_text() == "of somebody else"
    assert not (tmp_path / "file.json").is_symlink()
    assert files.read(tmp_path / "file.json") == {"a": 1}


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    files.write(path, {"a": 1})
    with no_descriptors(), pytest.raises(OSError):
        files.write(path, {"a": 2})
    assert files.read(path) == {"a": 1}
