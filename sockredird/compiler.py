"""Compiles and loads the BPF programs with BCC and pins them, in a child process.

BCC brings LLVM and keeps about 140 MB resident, so the daemon never imports it: this module is
run as `python3 -m sockredird.compiler`, and is the only one that imports bcc.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from sockredird import capabilities, child, detectors, errors
from sockredird.errors import LoadFailed, SockredirError
from sockredird.layout import ATTACHMENTS, CAPACITIES, DETECTORS, PROGRAMS, map_shapes
from sockredird.offsets import compiler_flags
from sockredird.uapi import AttachType, ProgType

log = logging.getLogger(__name__)

BPF_DIR = Path(__file__).parent / "bpf"
SOURCES = (
    "sockredir.h",
    "trace.c",
    "cgroup.h",
    "scope.h",
    "ends.h",
    "inflight.h",
    "learn.c",
    "pair.c",
    "redirect.c",
    "guard.c",
    "detect.c",
    "list.c",
    "nudge.c",
    "walk.c",
)
TIMEOUT_S = 60.0


def source() -> str:
    """The whole program text; #line lets the compiler name the file of an error."""
    return "".join(f'#line 1 "{name}"\n{(BPF_DIR / name).read_text()}' for name in SOURCES)


def source_digest() -> str:
    return hashlib.sha256(source().encode()).hexdigest()[:16]


def compile_and_pin(directory: Path, max_connections: int) -> None:
    """Pins the programs and maps of a new datapath in `directory`, an empty one on a bpffs.

    Raises LoadFailed with the compiler's or verifier's words, or UnsupportedKernel.
    """
    try:
        process = subprocess.run(
            child.command("compiler", str(directory), str(max_connections)),
            env=child.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"compiling the BPF programs took over {TIMEOUT_S:.0f} s") from error
    if process.returncode == 0:
        return
    try:
        answer = json.loads(process.stdout)
        kind: type[SockredirError] = getattr(errors, answer["error"])
        text = str(answer["text"])
    except (ValueError, KeyError, AttributeError):
        kind, text = LoadFailed, f"the BPF compiler ended with status {process.returncode}"
    if process.stderr:
        log.error("the BPF compiler said:\n%s", process.stderr.rstrip())
        text += f": {_gist(process.stderr)} (the daemon's log has all of it)"
    raise kind(text + capabilities.hint())


def _gist(output: str) -> str:
    """The line that names the cause: clang's first error, or the verifier's last word."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in lines:
        if "error:" in line:
            return line
    # "processed N insns ..." ends a verifier log, the cause stands above it
    spoken = [line for line in lines if not line.startswith("processed ")]
    return spoken[-1] if spoken else "no details"


def _load(directory: Path, max_connections: int) -> None:
    try:
        os.environ["BCC_KERNEL_SOURCE"] = str(BPF_DIR / "kernel-shim")
        from bcc import BPF
        from bcc import __version__ as bcc_version
        from bcc import lib as libbcc
    except ImportError as error:
        raise LoadFailed(f"BCC is not installed ({error}): apt install python3-bpfcc") from error
    page_size = resource.getpagesize()
    flags = [
        f"-DMAX_CONNECTIONS={max_connections}",
        *(f"-D{name}={entries}" for name, entries in CAPACITIES.items()),
        f"-DSOCKREDIR_PAGE_SIZE={page_size}",
        *compiler_flags(),
    ]
    with_module = [int(n) for n in re.findall(r"\d+", bcc_version)[:2]] >= [0, 27]
    flags += ["-DNAMED_WITH_MODULE"] if with_module else []
    try:
        # it would attach what is named kfunc__, and raise where the kernel has no ftrace
        BPF._trace_autoload = lambda _self: None
        module = BPF(text=source(), cflags=flags)
        pins = {
            pin: module.load_func(function, kind, attach_type=ATTACHMENTS.get(pin, -1)).fd
            for pin, (function, kind) in PROGRAMS.items()
        }
    except Exception as error:  # BCC raises bare Exception
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadFailed(f"a BPF program was refused: {first}") from error
    for name, (function, attach_type) in DETECTORS.items():
        kind = "kfunc" if attach_type is AttachType.TRACE_FENTRY else "kretfunc"
        kind += "__vmlinux__" if with_module else "__"
        with suppress(Exception):  # a kernel without ftrace, or without this function
            program = module.load_func(kind + function, ProgType.TRACING)
            pins[detectors.pin_name(name)] = program.fd
    for name in map_shapes(max_connections, page_size):
        pins[name] = libbcc.bpf_table_fd(module.module, name.encode())
    for name, fd in pins.items():
        if libbcc.bpf_obj_pin(fd, os.fsencode(directory / name)) != 0:
            raise LoadFailed(f"cannot pin {directory / name}")


def main() -> int:
    child.die_with(int(sys.argv[3]))
    try:
        _load(Path(sys.argv[1]), int(sys.argv[2]))
    except SockredirError as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
