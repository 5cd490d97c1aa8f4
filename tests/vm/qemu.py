"""Boots a guest, and sees to it that it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vm import sources
from vm.architectures import Architecture

_running: set[subprocess.Popen[bytes]] = set()
_ending = threading.Event()

STARTS = 3
START_TIMEOUT_S = 180.0
INIT = b"Run /init as init process"
# 7.2 crashes guest kernels under software emulation.
OLDEST = 10


def is_recent(program: str) -> bool:
    """A QEMU that will do is installed."""
    if not shutil.which(program):
        return False
    output = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
    version = output.stdout.split(" version ")[1]
    return int(version.split(".")[0]) >= OLDEST


def install(architecture: Architecture, directory: Path) -> None:
    """Installs what runs guests and what builds their roots, unless it is there."""
    wanted = {f"qemu-system-{architecture.machine}": architecture.package}
    if architecture.is_foreign:
        wanted[f"qemu-{architecture.machine}"] = "qemu-user"
    missing = [package for program, package in wanted.items() if not is_recent(program)]
    if missing:
        sources.install_from_backports(missing, directory)


def accelerator(architecture: Architecture) -> str:
    """KVM where it works: a /dev/kvm on a processor without the instructions runs no kernel."""
    flags = Path("/proc/cpuinfo").read_text().split()
    able = architecture.machine != "x86_64" or {"vmx", "svm"} & set(flags)
    if not architecture.is_foreign and able and os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "kvm"
    return "tcg,thread=multi"


def boot(
    architecture: Architecture,
    *,
    kernel: Path,
    initrd: Path,
    root: Path,
    share: Path,
    console: Path,
    timeout: float,
    memory_mib: int,
    parameters: str = "",
) -> bool:
    """Runs a guest until it powers off or reboots; False if it was killed after `timeout` seconds.

    What it writes to its two disks is kept. A kernel that does not come as far as starting init,
    and so has touched neither, is started again: emulated processors lose an interrupt now and
    then, on a busy machine.
    """
    command = [
        # QEMU does not outlive this process, however that ends
        *("setpriv", "--pdeathsig", "KILL"),
        *(f"qemu-system-{architecture.machine}", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-nic", "none"),
        *(*architecture.options, "-cpu", "max", "-smp", "2"),
        *("-accel", accelerator(architecture), "-m", str(memory_mib)),
        *("-serial", f"file:{console}"),
        *("-kernel", str(kernel), "-initrd", str(initrd)),
        # panic=-1: a kernel that panics reboots at once, and that ends this boot
        *("-append", f"root=/dev/vda rw console={architecture.console} panic=-1 {parameters}"),
        "-no-reboot",
        # unsafe: the disks are thrown away with whatever goes wrong with this machine
        *("-drive", f"file={root},if=virtio,format=raw,cache=unsafe"),
        *("-drive", f"file={share},if=virtio,format=raw,cache=unsafe"),
    ]
    deadline = time.monotonic() + timeout
    for _ in range(STARTS):
        with _guest(command) as process:
            started = _wait(process, min(START_TIMEOUT_S, timeout))
            if started is None and INIT not in console.read_bytes():
                print(f"{kernel.name} does not start: {console} has how far it came", flush=True)
                continue
            status = _wait(process, deadline - time.monotonic())
        if status is None:
            return False
        if status != 0:
            raise subprocess.CalledProcessError(status, command)
        return True
    return False


@contextmanager
def _guest(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    if _ending.is_set():
        raise KeyboardInterrupt
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    _running.add(process)
    try:
        yield process
    finally:
        _running.discard(process)
        process.kill()  # nothing, if it has ended
        process.wait()


def _wait(process: subprocess.Popen[bytes], timeout: float) -> int | None:
    """The exit status, or None after the timeout."""
    try:
        return process.wait(max(0.0, timeout))
    except subprocess.TimeoutExpired:
        return None


def end_all() -> None:
    """Kills the guests that run, whichever thread waits for them, and lets no other begin."""
    _ending.set()
    for process in list(_running):
        process.kill()
