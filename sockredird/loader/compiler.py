"""Compiles the BPF programs with BCC, loads and pins them, in a child process.

BCC brings LLVM and keeps about 140 MB resident, so the daemon never imports it: this module is
run as `python3 -m sockredird.loader.compiler`, and is the only one that imports bcc. It compiles
what cache.py has not kept. The child also loads the programs: parsing the kernel's types takes
20 MB for a moment, which the daemon would keep.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import logging
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sockredird import errors
from sockredird.errors import Busy, LoadFailed, SockredirError
from sockredird.kernel import capabilities, child, libbpf
from sockredird.loader import cache, objects
from sockredird.loader.btf import KernelTypes
from sockredird.loader.header import BPF_DIR
from sockredird.loader.objects import Objects, Program
from sockredird.loader.offsets import compiler_flags
from sockredird.loader.shapes import (
    CAPACITIES,
    DETECTORS,
    PROGRAMS,
    SUBSTITUTES,
    ProgramShape,
    detector_pin,
    map_shapes,
)

log = logging.getLogger(__name__)

TIMEOUT_S = 240.0  # it takes 4 s, and up to 150 s on a busy emulated processor


def source() -> str:
    """The whole program text: datapath.c with each #include "..." replaced by that file, once.

    BCC rewrites map accesses in its main file only. #line lets the compiler name the file of an
    error.
    """
    return _expanded(BPF_DIR / "datapath.c", set())


def _expanded(path: Path, seen: set[Path]) -> str:
    seen.add(path)
    name = path.relative_to(BPF_DIR)
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate(path.read_text().splitlines(), 1):
        included = re.fullmatch(r'#include "(.+)"', line)
        if included:
            # by name alone: BPF_DIR itself may be reached through a symbolic link
            inner = Path(os.path.normpath(path.parent / included[1]))
            lines.append("" if inner in seen else _expanded(inner, seen))
            lines.append(f'#line {number + 1} "{name}"')
        elif line != "#pragma once":
            lines.append(line)
        else:
            lines.append("")
    return "\n".join(lines) + "\n"


def source_digest() -> str:
    return hashlib.sha256(source().encode()).hexdigest()[:16]


def compile_and_pin(directory: Path, max_connections: int) -> None:
    """Pins the programs and maps of a new datapath in `directory`, which is empty and on a bpffs.

    `max_connections` sets the size of the maps; the programs do not depend on it.

    Raises LoadFailed with the message of the compiler or the verifier, UnsupportedKernel, or Busy
    if it takes too long.
    """
    try:
        process = subprocess.run(
            child.command("sockredird.loader.compiler", str(directory), str(max_connections)),
            env=child.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Busy(
            f"compiling the BPF programs took over {TIMEOUT_S:.0f} s: try again on a quieter host"
        ) from error
    if process.returncode == 0:
        for line in process.stderr.splitlines():
            log.warning("compiling or loading the BPF programs: %s", line)
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
    hint = capabilities.hint()
    raise kind(text if hint in text else text + hint)


def _gist(output: str) -> str:
    """The line that names the cause: clang's first error, or the verifier's last message."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in lines:
        if "error:" in line:
            return line
    # the last line of a verifier log is "processed N insns ...", and the cause is above it
    spoken = [line for line in lines if not line.startswith("processed ")]
    return spoken[-1] if spoken else "no details"


def _flags(kernel: KernelTypes) -> list[str]:
    return [
        *(f"-D{name}={entries}" for name, entries in CAPACITIES.items()),
        f"-DSOCKREDIR_PAGE_SIZE={resource.getpagesize()}",
        *compiler_flags(kernel),
    ]


def _bcc_version() -> str:
    """The version of BCC, read from its file: to import BCC takes a quarter of a second."""
    found = importlib.util.find_spec("bcc")
    if found is None or found.origin is None:
        return ""
    return Path(found.origin).with_name("version.py").read_text()


def _key(flags: list[str]) -> str:
    """A digest of all that the compiled programs depend on.

    They depend on the kernel only through the offsets in `flags`.
    """
    headers = [path.read_text() for path in sorted(BPF_DIR.glob("kernel-shim/**/*.h"))]
    shapes = [*_programs(), *SUBSTITUTES.items()]
    parts = [source(), *headers, *flags, *map(repr, shapes), _bcc_version()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _programs() -> Iterator[tuple[str, ProgramShape]]:
    """The shapes of all programs, by the names of their pins."""
    yield from PROGRAMS.items()
    for name, shape in DETECTORS.items():
        yield detector_pin(name), shape


def _compile(flags: list[str]) -> Objects:
    try:
        os.environ["BCC_KERNEL_SOURCE"] = str(BPF_DIR / "kernel-shim")
        from bcc import BPF
        from bcc import lib as libbcc
    except ImportError as error:
        raise LoadFailed(f"BCC is not installed ({error}): apt install python3-bpfcc") from error
    try:
        module = BPF(text=source(), cflags=flags)
    except Exception as error:  # BCC raises Exception itself
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadFailed(f"the BPF programs cannot be compiled: {first}") from error
    # BCC has created the maps; we keep what is needed to create them without it
    fds = {name: libbcc.bpf_table_fd(module.module, name.encode()) for name in map_shapes(1, 1)}
    maps = {name: objects.of_map(fd) for name, fd in fds.items()}
    places = {fd: place for place, fd in enumerate(fds.values())}

    def program(shape: ProgramShape, optional: bool) -> Program | None:
        function = shape.function.encode()
        begin = libbcc.bpf_function_start(module.module, function)
        if begin is None:
            if not optional:
                raise LoadFailed(f"the compiler has produced no {shape.function}()")
            return None  # the source leaves it out on this kernel
        code = ctypes.string_at(begin, libbcc.bpf_function_size(module.module, function))
        return Program(
            shape.kind,
            shape.function,
            objects.with_maps(code, places),
            shape.attach_type,
            shape.targets,
            optional,
        )

    made = {pin: program(shape, pin not in PROGRAMS) for pin, shape in _programs()}
    substitutes = {pin: program(shape, False) for pin, shape in SUBSTITUTES.items()}
    module.cleanup()
    return Objects(
        maps,
        {pin: one for pin, one in made.items() if one},
        {pin: one for pin, one in substitutes.items() if one},
    )


def is_cached() -> bool:
    """Whether the programs for this kernel need not be compiled. Raises UnsupportedKernel."""
    with closing(KernelTypes()) as kernel:
        return cache.read(_key(_flags(kernel))) is not None


def _load(directory: Path, max_connections: int) -> None:
    shapes = map_shapes(max_connections, resource.getpagesize())
    entries = {name: shape.max_entries for name, shape in shapes.items()}
    with closing(KernelTypes()) as kernel:
        flags = _flags(kernel)
        key = _key(flags)
        kept = cache.read(key)
        compiled = kept or _compile(flags)
        for name, fd in compiled.load(kernel, entries).items():
            libbpf.pin(fd, directory / name)
    if kept is None:
        cache.write(key, compiled)


def main() -> int:
    child.die_with(int(sys.argv[3]))
    try:
        try:
            _load(Path(sys.argv[1]), int(sys.argv[2]))
        except OSError as error:
            raise LoadFailed(str(error)) from error
    except SockredirError as error:
        print(*getattr(error, "__notes__", []), sep="\n", end="", file=sys.stderr)
        print(json.dumps({"error": type(error).__name__, "text": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
