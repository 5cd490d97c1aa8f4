"""Runs the tests in guests: python3 -m vm --kernel 6.12 --package sockredird.deb PACKAGE..."""

from __future__ import annotations

import argparse
import fcntl
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from vm import disk, qemu, report, roots, sources
from vm.kernels import KERNELS, Kernel

REPOSITORY = Path(__file__).parents[2]
BUILD = REPOSITORY / "build" / "vm"
SHARE_ROOM = 256 << 20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vm")
    parser.add_argument("--kernel", choices=[*KERNELS, "all"], default="all")
    parser.add_argument("--package", type=Path, required=True, help="the .deb under test")
    parser.add_argument("--timeout", type=float, default=1500, help="seconds for each guest")
    parser.add_argument("--pytest", default="", help="arguments for pytest in the guest")
    parser.add_argument("packages", nargs="*", help="Debian packages installed in the guest")
    return parser.parse_args()


def fill_share(package: Path, pytest_arguments: str, tree: Path) -> None:
    guest = Path(__file__).parent / "guest"
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(guest, tree / "guest", ignore=ignore)
    shutil.move(tree / "guest" / "boot", tree / "boot")
    shutil.copytree(REPOSITORY / "tests", tree / "checkout" / "tests", ignore=ignore)
    shutil.copy(REPOSITORY / "pyproject.toml", tree / "checkout")
    (tree / "package").mkdir()
    shutil.copy(package, tree / "package")
    (tree / "pytest-arguments").write_text(pytest_arguments)


def run(kernel: Kernel, options: argparse.Namespace) -> bool:
    """All stages on one kernel; True if nothing failed."""
    image = roots.build(kernel.root, options.packages, BUILD / "roots")
    vmlinuz, initrd = image.boot_files(kernel.version)
    directory = BUILD / f"guest-{kernel.version}"
    shutil.rmtree(directory, ignore_errors=True)
    tree = directory / "share"
    tree.mkdir(parents=True)
    fill_share(options.package, options.pytest, tree)
    share = directory / "share.img"
    disk.make(share, tree, SHARE_ROOM)

    console = directory / "console"
    print(f"{vmlinuz.name}: booting; what it does: tail -f {console}", flush=True)
    begun = time.monotonic()
    ended = qemu.boot(
        kernel=vmlinuz,
        initrd=initrd,
        root=image.root,
        share=share,
        console=console,
        timeout=options.timeout,
    )
    duration = time.monotonic() - begun
    disk.extract(share, "/results", directory)
    results = directory / "results"
    result = report.read(results, BUILD / f"junit-{kernel.version}.xml")
    if not ended:
        result.failures.insert(0, f"the guest was killed after {options.timeout:.0f} s")
    if result.failures:
        print(report.logs(results, console))
        for failure in result.failures:
            print(f"===== {kernel.version}: {failure}")
    print(f"===== {vmlinuz.name}: {result.line()} in {duration:.0f} s", flush=True)
    return not result.failures


def terminate(number: int, frame: FrameType | None) -> None:
    # an exception, so that the guest and temporary directories are cleared away
    sys.exit(128 + number)


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, terminate)
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"vm: another run holds {lock.name}", file=sys.stderr)
            return 1
        if not qemu.is_recent():
            sources.install_from_backports(["qemu-system-x86"], BUILD / "apt")
        chosen = KERNELS.values() if options.kernel == "all" else [KERNELS[options.kernel]]
        # a list: a failure on one kernel does not keep the others from running
        return 0 if all([run(kernel, options) for kernel in chosen]) else 1


if __name__ == "__main__":
    sys.exit(main())
