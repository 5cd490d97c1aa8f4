"""Boots a guest, and sees to it that it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

PROGRAM = "qemu-system-x86_64"
MEMORY_MIB = 2048
# 7.2 crashes guest kernels under software emulation.
OLDEST = 10


def is_recent() -> bool:
    """A QEMU that will do is installed."""
    if not shutil.which(PROGRAM):
        return False
    output = subprocess.run([PROGRAM, "--version"], check=True, capture_output=True, text=True)
    version = output.stdout.split()[3]
    return int(version.split(".")[0]) >= OLDEST


def boot(
    *,
    kernel: Path,
    initrd: Path,
    root: Path,
    share: Path,
    console: Path,
    timeout: float,
    parameters: str = "",
) -> bool:
    """Runs a guest until it powers off; False if it had to be killed after `timeout` seconds.

    What it writes to `root` is forgotten at the end, but stays over a reboot; `share` is kept.
    """
    command = [
        # QEMU does not outlive this process, however that ends
        *("setpriv", "--pdeathsig", "KILL"),
        *(PROGRAM, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-nic", "none", "-machine", "q35", "-cpu", "max", "-smp", "2"),
        *("-accel", "tcg,thread=multi", "-m", str(MEMORY_MIB)),
        *("-serial", f"file:{console}"),
        *("-kernel", str(kernel), "-initrd", str(initrd)),
        # panic=-1: a kernel that panics reboots at once, which the guest's script notices
        *("-append", f"root=/dev/vda rw console=ttyS0 panic=-1 {parameters}"),
        *("-drive", f"file={root},if=virtio,format=raw,snapshot=on"),
        *("-drive", f"file={share},if=virtio,format=raw"),
    ]
    # snapshot=on writes there, and /tmp may be memory
    environment = os.environ | {"TMPDIR": str(share.parent)}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    try:
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    if status != 0:
        raise subprocess.CalledProcessError(status, command)
    return True
