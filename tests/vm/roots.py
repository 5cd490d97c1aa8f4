"""Builds a Debian root as an ext4 image with its kernels beside it, once for what goes into it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vm import disk, sources
from vm.architectures import Architecture
from vm.kernels import Kernel, Root

# Small, and all of virtio
FLAVOUR = "cloud"
SYSTEM = ("dbus", "e2fsprogs", "initramfs-tools", "kmod", "systemd-sysv", "udev", "zstd")
# Programs that are accelerated, and what the typed commands need
PROGRAMS = (
    *("curl", "haproxy", "nginx-light", "openssl", "postgresql"),
    *("redis-server", "redis-tools", "sudo"),
)
# Of all that is downloaded and installed; without a mirror apt gives up by itself, before that
BUILD_TIMEOUT_S = 1800
# Under qemu-user, on a host that is busy besides
FOREIGN_BUILD_TIMEOUT_S = 4 * 3600
# Free space of the root's file system; the file is sparse
ROOM = 2 << 30
# Started by the tests that want them; the login prompt would write over the log on the console.
NOT_AT_BOOT = ("haproxy", "nginx", "postgresql", "redis-server")
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "man-db.timer",
)
NO_INDEX_OF_MANUALS = (
    'echo man-db man-db/auto-update boolean false | chroot "$1" debconf-set-selections'
)
# What it starts comes with the share, so that a change of the tests builds no new root. Not part of
# a boot that waits for it: the tests start services themselves.
UNIT = """\
[Unit]
RequiresMountsFor=/share
[Service]
Type=exec
ExecStart=/share/boot
StandardOutput=journal+console
StandardError=journal+console
[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Image:
    """A directory holding root.img, and vmlinuz and initrd.img of each kernel."""

    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root.img"

    def boot_files(self, kernel: Kernel) -> tuple[Path, Path]:
        """Its image and its initrd."""
        kernels = sorted(self.directory.glob(f"vmlinuz-{kernel.version}*"))
        if not kernels:
            raise FileNotFoundError(f"{self.directory} has no kernel {kernel.name}")
        return kernels[-1], Path(str(kernels[-1]).replace("/vmlinuz-", "/initrd.img-"))


def build(root: Root, packages: Sequence[str], cache: Path, name: str = "") -> Image:
    """The image for `root` with `packages`, from the cache if nothing about it changed.

    Roots of one suite with other names are kept.
    """
    # Newer packages of a suite are no reason: `make clean` gets them.
    ingredients = [repr(root), *sorted(packages), Path(__file__).read_text()]
    key = hashlib.sha256("\n".join(ingredients).encode()).hexdigest()[:12]
    kind = f"{root.suite}-{root.architecture.name}" + (f".{name}" if name else "")
    image = Image(cache / f"{kind}-{key}")
    if image.directory.exists():
        return image
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as temporary:
        building = Path(temporary)
        tree = building / "tree"
        wanted = [*SYSTEM, *PROGRAMS, *root.packages, *packages]
        _bootstrap(root, [package for package in wanted if package not in root.lacks], tree)
        done = building / "image"
        done.mkdir()
        for file in (tree / "boot").glob(f"*-*-{FLAVOUR}-{root.architecture.name}"):
            if file.name.startswith(("vmlinuz-", "initrd.img-")):
                shutil.copyfile(file, done / file.name)
        disk.make(done / "root.img", tree, ROOM)
        done.rename(image.directory)
    for stale in cache.glob(f"{kind}-*"):
        if stale != image.directory:
            shutil.rmtree(stale)
    return image


def _bootstrap(root: Root, packages: Sequence[str], tree: Path) -> None:
    install = 'chroot "$1" apt-get install -qy --no-install-recommends'
    kernel = f"linux-image-{FLAVOUR}-{root.architecture.name}"
    masked = [*MASKED, f"serial-getty@{root.architecture.console}.service"]
    hooks = [f"{install} -t {suite} {kernel}" for suite in root.kernel_suites]
    hooks += [
        # an empty root password: the console is a file, there is nobody to type one
        'chroot "$1" passwd -d root',
        # whom the tests of authorisation know
        'for user in visitor manager admin; do chroot "$1" useradd -m "$user"; done',
        'chroot "$1" usermod -aG sudo admin',
        'echo "/dev/vda / ext4 defaults 0 1" > "$1/etc/fstab"',
        # of systemd's 90 s, a machine that is emulated on a busy host needs more for udev alone
        'echo "/dev/vdb /share ext4 x-systemd.device-timeout=15min 0 0" >> "$1/etc/fstab"',
        'mkdir "$1/share"',
        f"""echo '{UNIT}' > "$1/etc/systemd/system/vm-test.service\"""",
        'systemctl --root="$1" enable vm-test.service',
        'echo guest > "$1/etc/hostname"',
        'echo "127.0.0.1 localhost guest" > "$1/etc/hosts"',
        f'systemctl --root="$1" mask {" ".join(masked)}',
        f'systemctl --root="$1" disable {" ".join(NOT_AT_BOOT)}',
    ]
    subprocess.run(
        [
            *_where_it_runs(root.architecture),
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            f"--architectures={root.architecture.name}",
            f"--include={','.join([kernel, *packages])}",
            '--aptopt=Apt::Install-Recommends "false"',
            # an index of all manual pages takes minutes where programs are emulated
            f"--essential-hook={NO_INDEX_OF_MANUALS}",
            # the tree is thrown away if the build is interrupted
            "--dpkgopt=force-unsafe-io",
            # testing and unstable of a mirror that is a week behind will do
            '--aptopt=Acquire::Check-Valid-Until "false"',
            *(f"--customize-hook={hook}" for hook in hooks),
            root.suite,
            str(tree),
            *(sources.line(suite) for suite in (root.suite, *root.kernel_suites)),
        ],
        check=True,
        timeout=FOREIGN_BUILD_TIMEOUT_S if root.architecture.is_foreign else BUILD_TIMEOUT_S,
    )


def _where_it_runs(architecture: Architecture) -> list[str]:
    """What a command that runs programs of that architecture begins with."""
    if not architecture.is_foreign:
        return []
    return [sys.executable, "-m", "vm.foreign", architecture.name]
