"""What `make apt-repo` makes is a repository that apt trusts by its key, and by no other."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.checkout import REPOSITORY

PROGRAMS = ("apt-ftparchive", "apt-get", "dpkg-deb", "gpg")
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)), reason="make install-deps installs apt-utils and gnupg"
)

CONTROL = """\
Package: sockredird
Version: 9.9-1
Architecture: all
Maintainer: nobody <nobody@localhost>
Description: stands for the package
"""
SOURCES = """\
Types: deb
URIs: file:{repository}
Suites: stable
Components: main
Signed-By: {keyring}
"""
# Everything that apt reads or writes is below {root}. As root, it would read as the user _apt.
CONFIG = """\
Dir "{root}";
Dir::State::status "{root}/status";
Dir::Etc "etc";
Dir::Log "{root}";
APT::Sandbox::User "root";
APT::Architecture "amd64";
APT::Architectures "amd64";
Acquire::Languages "none";
"""


def run(
    *command: str | Path, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def gnupg() -> Iterator[dict[str, str]]:
    """A directory of gpg's own: a short path, since its agent has a socket there."""
    with tempfile.TemporaryDirectory(prefix="gnupg-") as directory:
        env = {"GNUPGHOME": directory}
        yield env
        run("gpgconf", "--kill", "all", cwd=Path(directory), env=env)


def make_key(directory: Path, gnupg: dict[str, str], name: str) -> str:
    """Its fingerprint."""
    batch = ("gpg", "--batch", "--passphrase", "", "--quick-generate-key", name, "ed25519", "sign")
    made = run(*batch, cwd=directory, env=gnupg)
    assert made.returncode == 0, made.stderr
    shown = run("gpg", "--with-colons", "--list-keys", name, cwd=directory, env=gnupg)
    return next(row.split(":")[9] for row in shown.stdout.splitlines() if row.startswith("fpr"))


def make_repository(directory: Path, gnupg: dict[str, str], key: str) -> Path:
    debian = directory / "tree" / "DEBIAN"
    debian.mkdir(parents=True)
    (debian / "control").write_text(CONTROL)
    (directory / "dist").mkdir()
    package = directory / "dist" / "sockredird_9.9-1_all.deb"
    built = run("dpkg-deb", "--root-owner-group", "-b", debian.parent, package, cwd=directory)
    assert built.returncode == 0, built.stderr
    made = run(REPOSITORY / "packaging" / "apt-repo", key, cwd=directory, env=gnupg)
    assert made.returncode == 0, made.stderr
    return directory / "dist" / "apt"


def apt(root: Path, repository: Path, keyring: Path) -> dict[str, str]:
    """The environment of an apt that knows this repository alone."""
    for name in ("etc/apt.conf.d", "etc/sources.list.d", "etc/preferences.d"):
        (root / name).mkdir(parents=True)
    for name in ("var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
        (root / name).mkdir(parents=True)
    (root / "status").touch()
    sources = SOURCES.format(repository=repository, keyring=keyring)
    (root / "etc/sources.list.d/sockredird.sources").write_text(sources)
    (root / "apt.conf").write_text(CONFIG.format(root=root))
    return {"APT_CONFIG": str(root / "apt.conf")}


def test_apt_installs_from_it(tmp_path: Path, gnupg: dict[str, str]) -> None:
    repository = make_repository(tmp_path, gnupg, make_key(tmp_path, gnupg, "release"))
    env = apt(tmp_path / "apt", repository, repository / "sockredird-archive-keyring.gpg")
    updated = run("apt-get", "update", "--error-on=any", cwd=tmp_path, env=env)
    assert (updated.returncode, updated.stderr) == (0, "")
    installed = run("apt-get", "--simulate", "install", "sockredird", cwd=tmp_path, env=env)
    assert "Inst sockredird (9.9-1 sockredird:stable [all])" in installed.stdout, installed.stderr
    # those that ask for the detached signature
    signature = repository / "dists" / "stable" / "Release.gpg"
    verified = run("gpg", "--verify", signature, signature.with_suffix(""), cwd=tmp_path, env=gnupg)
    assert verified.returncode == 0, verified.stderr


def test_apt_refuses_another_key(tmp_path: Path, gnupg: dict[str, str]) -> None:
    repository = make_repository(tmp_path, gnupg, make_key(tmp_path, gnupg, "release"))
    other = make_key(tmp_path, gnupg, "other")
    keyring = tmp_path / "other.gpg"
    run("gpg", "--output", keyring, "--export", other, cwd=tmp_path, env=gnupg)
    env = apt(tmp_path / "apt", repository, keyring)
    updated = run("apt-get", "update", "--error-on=any", cwd=tmp_path, env=env)
    assert updated.returncode != 0
    assert "NO_PUBKEY" in updated.stderr


def test_without_the_key(tmp_path: Path, gnupg: dict[str, str]) -> None:
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "sockredird_9.9-1_all.deb").touch()
    made = run(REPOSITORY / "packaging" / "apt-repo", "0123ABCD", cwd=tmp_path, env=gnupg)
    assert made.returncode == 1
    assert made.stderr.startswith("apt-repo: gpg has no secret key 0123ABCD")
    assert not (tmp_path / "dist" / "apt").exists()
