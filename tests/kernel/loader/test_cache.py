"""What was compiled once is loaded again without the compiler, and only what we wrote."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sockredird.datapath.generation import Generation
from sockredird.errors import LoadFailed
from sockredird.kernel import child, libbpf
from sockredird.loader import cache, compiler
from sockredird.loader.shapes import PROGRAMS
from support.processes import inside
from support.traffic import connection, echo

pytestmark = pytest.mark.compiles

LIMIT = 100  # connections


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled programs are kept; there are none yet."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("CACHE_DIRECTORY", str(directory))
    return directory


@pytest.fixture
def without_bcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From this call on, importing bcc fails; what tells its version is still there."""
    spec = importlib.util.find_spec("bcc")
    assert spec is not None
    assert spec.origin is not None
    shadow = tmp_path / "shadow" / "bcc"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise ImportError('hidden')\n")
    (shadow / "version.py").write_text(Path(spec.origin).with_name("version.py").read_text())
    real = child.environment

    def environment() -> dict[str, str]:
        values = real()
        return values | {"PYTHONPATH": f"{shadow.parent}{os.pathsep}{values['PYTHONPATH']}"}

    return lambda: monkeypatch.setattr(child, "environment", environment)


def make(bpffs: Path, limit: int = LIMIT) -> dict[str, str]:
    """Loads the programs, and unpins them; the kernel's hashes of them by name."""
    directory = bpffs / "compiled"
    directory.mkdir()
    try:
        compiler.compile_and_pin(directory, limit)
        pins = {name: libbpf.open_pin(directory / name) for name in PROGRAMS}
        return {name: libbpf.prog_tag(fd) for name, fd in pins.items()}
    finally:
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def only_file(kept: Path) -> Path:
    (file,) = kept.iterdir()
    return file


def test_the_compiler_runs_once(bpffs: Path, kept: Path, without_bcc: Callable[[], None]) -> None:
    compiled = make(bpffs)
    without_bcc()
    assert make(bpffs) == compiled
    assert make(bpffs, LIMIT + 1) == compiled
    file = only_file(kept)
    # without what is kept it would have to compile: what hides the compiler does so
    file.unlink()
    with pytest.raises(LoadFailed, match=r"BCC is not installed \(hidden\)"):
        make(bpffs)


@pytest.fixture(scope="module")
def compiled(bpffs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Where what make() returned is kept."""
    directory = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CACHE_DIRECTORY", str(directory))
        return directory, make(bpffs)


@pytest.fixture
def tags(kept: Path, compiled: tuple[Path, dict[str, str]]) -> dict[str, str]:
    """What make() returned when it made what is kept."""
    directory, tags = compiled
    shutil.copytree(directory, kept)
    return tags


@pytest.fixture
def kept_and_no_compiler(tags: dict[str, str], without_bcc: Callable[[], None]) -> None:
    without_bcc()


@pytest.mark.plan(max_connections=LIMIT)
@pytest.mark.usefixtures("kept_and_no_compiler")
@inside()
def test_redirecting_by_what_was_kept(cgroup: Path, generation: Generation) -> None:
    with connection() as both:
        echo(both, 10)
    assert generation.counters()["redirected_messages"] == 20


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def change(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def of_another_format(file: Path) -> None:
    content = b'{"maps": {}}'
    file.write_bytes(compiler.hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def give_away(file: Path) -> None:
    os.chown(file, 1, 1)


def let_others_write(file: Path) -> None:
    file.chmod(0o666)


@pytest.mark.parametrize(
    "spoil", [truncate, change, of_another_format, give_away, let_others_write]
)
def test_what_cannot_be_trusted_is_compiled_anew(
    bpffs: Path,
    kept: Path,
    tags: dict[str, str],
    spoil: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = only_file(kept)
    good = file.read_bytes()
    spoil(file)
    with caplog.at_level(logging.WARNING):
        assert make(bpffs) == tags
    assert f"{file} is not used" in caplog.text
    # and is good again
    assert only_file(kept) == file
    assert file.read_bytes() == good
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (0, 0o600)


def test_it_cannot_be_kept(
    bpffs: Path,
    kept: Path,
    compiled: tuple[Path, dict[str, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept.write_text("a file where a directory is wanted")
    with caplog.at_level(logging.WARNING):
        assert make(bpffs) == compiled[1]
    assert "the compiled programs are not kept" in caplog.text


def test_a_full_disk(kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(kept)], check=True)
    try:
        with caplog.at_level(logging.WARNING):
            cache.write("large", compiler.Objects({"map": bytes(1 << 20)}, {}))
        assert "No space left" in caplog.text
        assert not list(kept.iterdir())
    finally:
        subprocess.run(["umount", str(kept)], check=True)


def test_the_oldest_go(kept: Path) -> None:
    """Those last used stay; so do not what a killed compiler left half written."""
    made = compiler.Objects({}, {})
    kept.mkdir()
    (kept / "tmphalf").write_text("")
    for number in range(cache.KEPT + 3):
        cache.write(str(number), made)
        assert cache.read("0") == made  # in use all the time
    latest = range(4, cache.KEPT + 3)
    machine = os.uname().machine
    names = {f"{number}.{machine}" for number in (0, *latest)}
    assert {path.name for path in kept.iterdir()} == names


def test_another_architecture(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that was moved: what was compiled for other registers is not loaded."""
    made = compiler.Objects({}, {})
    cache.write("key", made)
    here = os.uname()
    there = os.uname_result((*here[:4], "aarch64" if here.machine != "aarch64" else "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: there)
    assert cache.read("key") is None


def test_no_link_is_followed(kept: Path, tmp_path: Path) -> None:
    cache.write("key", compiler.Objects({}, {}))
    file = only_file(kept)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert cache.read("key") is None
    cache.write("key", compiler.Objects({}, {}))
    assert not file.is_symlink()
