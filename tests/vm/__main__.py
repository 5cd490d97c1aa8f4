"""Runs the tests in guests: python3 -m vm --kernel 6.12 --package sockredird.deb PACKAGE...

Without --package it only builds the roots that they start from.
"""

from __future__ import annotations

import argparse
import fcntl
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from vm import disk, kernels, qemu, report, roots
from vm.architectures import ARCHITECTURES
from vm.guest.boots import SEQUENCES
from vm.kernels import Kernel, Root

REPOSITORY = Path(__file__).parents[2]
BUILD = REPOSITORY / "build" / "vm"
# Compiled by make vm-test, for each architecture: the guests have no compilers.
PROGRAMS = REPOSITORY / "build" / "programs"
# An emulated guest needs an hour for the suites, and some minutes for one in so many tests.
PARTS = 16
# Tests of what does not depend on the kernel: once for each root
NOT_USERLAND = '-m "not userland"'
SHARE_ROOM = 256 << 20
# What tests of a checkout look at, or import, beside the packages, which are those installed
CHECKOUT = ("bench", "completions", "dbus", "docs", "man", "polkit", "tests")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vm")
    parser.add_argument("--kernel", choices=[*kernels.NAMES, "all"], default="all")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="amd64")
    parser.add_argument("--boots", choices=SEQUENCES, default="package", help="what is tried")
    parser.add_argument("--package", type=Path, help="the .deb under test")
    parser.add_argument("--timeout", type=float, help="seconds for each guest")
    parser.add_argument("--jobs", type=int, default=2, help="guests at a time")
    parser.add_argument("--full", action="store_true", help="whole suites, not a part of each")
    parser.add_argument("--pytest", default="", help="arguments for pytest in the guest")
    parser.add_argument("packages", nargs="*", help="Debian packages installed in the guest")
    return parser.parse_args()


def twice(kernel: Kernel, chosen: Sequence[Kernel]) -> bool:
    """Another kernel of this run, before it in the list, has the same root."""
    return next(k for k in chosen if k.root == kernel.root) != kernel


def fill_share(
    options: argparse.Namespace, programs: Path, part: str, pytest_arguments: str, tree: Path
) -> None:
    guest = Path(__file__).parent / "guest"
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(guest, tree / "guest", ignore=ignore)
    shutil.move(tree / "guest" / "boot", tree / "boot")
    for name in CHECKOUT:
        shutil.copytree(REPOSITORY / name, tree / "checkout" / name, ignore=ignore)
    shutil.copy(REPOSITORY / "pyproject.toml", tree / "checkout")
    shutil.copytree(programs, tree / "programs")
    (tree / "package").mkdir()
    shutil.copy(options.package, tree / "package")
    shutil.copytree(REPOSITORY / "packaging/debian/tests", tree / "package" / "tests")
    (tree / "pytest-arguments").write_text(pytest_arguments)
    (tree / "part").write_text(part)
    (tree / "sequence").write_text(options.boots)


def run(kernel: Kernel, image: roots.Image, options: argparse.Namespace, *, userland: bool) -> bool:
    """All boots of one kernel; True if nothing failed."""
    vmlinuz, initrd = image.boot_files(kernel)
    architecture = kernel.root.architecture
    sequence = SEQUENCES[options.boots]
    timeout_s = options.timeout or sequence.timeout_s
    name = kernel.run_name(options.boots)
    directory = BUILD / f"guest-{name}"
    shutil.rmtree(directory, ignore_errors=True)
    tree = directory / "share"
    tree.mkdir(parents=True)
    # another part on each kernel
    part = "1/1" if options.full else f"{kernels.KERNELS.index(kernel) + 1}/{PARTS}"
    selection = [options.pytest] if userland or options.full else [NOT_USERLAND, options.pytest]
    fill_share(options, PROGRAMS / architecture.name, part, " ".join(selection), tree)
    share, root = directory / "share.img", directory / "root.img"
    disk.make(share, tree, SHARE_ROOM)
    disk.copy(image.root, root)

    begun = time.monotonic()
    late = False
    consoles = []
    for number, boot in enumerate(sequence.boots):
        consoles.append(directory / f"console-{number}")
        print(f"{vmlinuz.name} {boot.parameters}: tail -f {consoles[-1]}", flush=True)
        late = not qemu.boot(
            architecture,
            kernel=vmlinuz,
            initrd=initrd,
            root=root,
            share=share,
            console=consoles[-1],
            timeout=max(1.0, begun + timeout_s - time.monotonic()),
            memory_mib=sequence.memory_mib,
            parameters=f"vm_test.boot={number} {boot.parameters}",
        )
        if late:
            break
    duration = time.monotonic() - begun
    root.unlink()
    disk.extract(share, "/results", directory)
    results = directory / "results"
    stages = [stage.name for boot in sequence.boots for stage in boot.stages]
    result = report.read(results, stages, BUILD / f"junit-{name}.xml")
    if late:
        result.failures.insert(0, f"the guest was killed after {timeout_s:.0f} s")
    elif not result.passed and not result.failures:
        result.failures.append("no test passed: --pytest chose none")
    lines = [f"===== {vmlinuz.name}: {result.line()} in {duration:.0f} s"]
    if result.failures:
        failures = [f"===== {kernel.title}: {failure}" for failure in result.failures]
        lines = [report.logs(results, consoles), *failures, *lines]
    # at once, as other guests print, too
    print("\n".join(lines), flush=True)
    return not result.failures


def keep_results(name: str) -> None:
    """Lets the guest's directory be, as guest-NAME.first, when another run follows."""
    kept = BUILD / f"guest-{name}.first"
    shutil.rmtree(kept, ignore_errors=True)
    (BUILD / f"guest-{name}").rename(kept)


def build_root(root: Root, options: argparse.Namespace) -> roots.Image:
    """The sequences that need no packages of their own share a root."""
    more = SEQUENCES[options.boots].packages
    name = options.boots if more else ""
    return roots.build(root, [*options.packages, *more], BUILD / "roots", name)


def terminate(number: int, frame: FrameType | None) -> None:
    qemu.end_all()
    # an exception, so that temporary directories are cleared away
    sys.exit(128 + number)


def main() -> int:
    options = arguments()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, terminate)
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"vm: another run holds {lock.name}", file=sys.stderr)
            return 1
        qemu.install(ARCHITECTURES[options.architecture], BUILD / "apt")
        chosen = kernels.chosen(options.kernel, options.architecture)
        images = {
            root: build_root(root, options)
            for root in dict.fromkeys(kernel.root for kernel in chosen)
        }
        if options.package is None:
            return 0

        def passes(kernel: Kernel) -> bool:
            userland = options.boots != "package" or not twice(kernel, chosen)
            return run(kernel, images[kernel.root], options, userland=userland)

        with ThreadPoolExecutor(options.jobs) as guests:
            # all of them: a failure on one kernel does not keep the others from running
            passed = list(guests.map(passes, chosen))
        failed = [kernel for kernel, good in zip(chosen, passed, strict=True) if not good]
        if failed and len(chosen) > 1:
            # emulated processors that share real ones can stand still for longer than a time limit
            print("===== once more, one at a time:", *(k.title for k in failed), flush=True)
            for kernel in failed:
                keep_results(kernel.run_name(options.boots))
            failed = [kernel for kernel in failed if not passes(kernel)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
