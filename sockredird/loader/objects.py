"""BPF programs and maps as data, which can be kept in a file and loaded into the kernel later.

The compiler's instructions refer to a map by a file descriptor of its process. Here they have the
number of the map in the table of maps instead, like the relocations of an ELF object.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from sockredird.errors import LoadFailed
from sockredird.kernel import libbpf
from sockredird.kernel.libbpf import Fd
from sockredird.kernel.uapi import MapInfo, ProgType
from sockredird.loader.btf import KernelTypes

_LOAD_IMMEDIATE = 0x18  # BPF_LD | BPF_IMM | BPF_DW, bpf_common.h
_MAP_FD = 1  # BPF_PSEUDO_MAP_FD, bpf.h: the source register of such an instruction
_CALL = 0x85  # BPF_JMP | BPF_CALL
_KFUNC_CALL = 2  # BPF_PSEUDO_KFUNC_CALL: the source register of a call to a kernel function
# The helper number that stands for bpf_rdonly_cast() in the C; no kernel has as many helpers.
RDONLY_CAST = 0x6B660001
_INSTRUCTION = struct.Struct("=BBhi")  # struct bpf_insn: opcode, registers, offset, immediate


class Unreadable(ValueError):
    """The data is not the output of Objects.dump()."""


@dataclass(frozen=True)
class Program:
    kind: ProgType
    name: str
    code: bytes  # refers to maps by their number in Objects.maps
    attach_type: int = 0
    targets: tuple[str, ...] = ()  # a tracing program is for the first that the kernel has
    optional: bool = False  # left out if the kernel does not accept it


@dataclass(frozen=True)
class Objects:
    """Maps and programs by the names of their pins; a map is a struct bpf_map_info."""

    maps: Mapping[str, bytes]
    programs: Mapping[str, Program]
    # in place of programs that the kernel does not permit
    substitutes: Mapping[str, Program] = field(default_factory=dict)

    def load(self, kernel: KernelTypes, entries: Mapping[str, int]) -> dict[str, Fd]:
        """Creates the maps and loads the programs. Optional ones may be missing from the result.

        `entries` is the size of each map, which the compiler need not know. Raises LoadFailed, with
        the verifier's messages as `__notes__`.
        """
        pins: dict[str, Fd] = {}
        with ExitStack() as stack:
            try:
                for name, raw in self.maps.items():
                    pins[name] = stack.enter_context(_make(raw, entries[name]))
            except OSError as error:
                raise LoadFailed(f"the kernel refused: {error.strerror}") from error
            places = {place: fd.number for place, fd in enumerate(pins.values())}
            for name, program in self.programs.items():
                with suppress(LoadFailed) if program.optional else nullcontext():
                    pins[name] = stack.enter_context(self._load(name, places, kernel))
            stack.pop_all()
        return pins

    def _load(self, name: str, places: Mapping[int, int], kernel: KernelTypes) -> Fd:
        try:
            return _load(self.programs[name], places, kernel)
        except LoadFailed as refusal:
            if name not in self.substitutes or not isinstance(refusal.__cause__, PermissionError):
                raise
            with suppress(LoadFailed):
                return _load(self.substitutes[name], places, kernel)
            raise

    def dump(self) -> bytes:
        """The objects as bytes: a line with a digest, and the JSON that it is the digest of."""
        content = json.dumps(
            {
                "maps": {name: _text(raw) for name, raw in self.maps.items()},
                "programs": _texts(self.programs),
                "substitutes": _texts(self.substitutes),
            }
        ).encode()
        return _digest(content) + b"\n" + content

    @classmethod
    def parse(cls, data: bytes) -> Objects:
        """The objects from what dump() returned. Raises Unreadable."""
        digest, _, content = data.partition(b"\n")
        if digest != _digest(content):
            raise Unreadable("it is damaged")
        try:
            fields = json.loads(content)
            return cls(
                {name: _map(raw) for name, raw in fields["maps"].items()},
                _programs(fields["programs"]),
                _programs(fields["substitutes"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreadable(f"it is of another version ({error})") from error


def of_map(number: int) -> bytes:
    """The value in Objects.maps for a loaded map. The descriptor `number` stays open."""
    with Fd(os.dup(number)) as fd:
        info = libbpf.map_info(fd)
    info.id = 0  # of the map that BCC has created
    return bytes(info)


def with_maps(code: bytes, replacements: Mapping[int, int]) -> bytes:
    """The instructions, with each reference to a map replaced as `replacements` says."""
    changed = bytearray(code)
    opcodes = code[:: _INSTRUCTION.size]
    found = opcodes.find(_LOAD_IMMEDIATE)
    while found >= 0:
        place = found * _INSTRUCTION.size
        opcode, registers, offset, immediate = _INSTRUCTION.unpack_from(code, place)
        source = registers >> 4 if sys.byteorder == "little" else registers & 15
        if source == _MAP_FD:
            _INSTRUCTION.pack_into(
                changed, place, opcode, registers, offset, replacements[immediate]
            )
        found = opcodes.find(_LOAD_IMMEDIATE, found + 1)
    return bytes(changed)


def with_kernel_functions(code: bytes, kernel: KernelTypes) -> bytes:
    """Instructions in which the call of RDONLY_CAST is one of the running kernel's function.

    BCC knows helpers only, which are called by number.
    """
    changed = bytearray(code)
    for place in range(0, len(code), _INSTRUCTION.size):
        opcode, registers, offset, immediate = _INSTRUCTION.unpack_from(code, place)
        if opcode == _CALL and immediate == RDONLY_CAST:
            found = kernel.function("bpf_rdonly_cast")
            if found is None:
                raise LoadFailed("bpf_rdonly_cast() is not in the kernel's BTF")
            source = _KFUNC_CALL << 4 if sys.byteorder == "little" else _KFUNC_CALL
            _INSTRUCTION.pack_into(changed, place, opcode, registers | source, offset, found)
    return bytes(changed)


def _make(raw: bytes, entries: int) -> Fd:
    info = MapInfo.from_buffer_copy(raw)
    info.max_entries = entries
    return libbpf.create_map(info)


def _load(program: Program, places: Mapping[int, int], kernel: KernelTypes) -> Fd:
    target = 0
    if program.targets:
        found = next(filter(None, map(kernel.function, program.targets)), None)
        if found is None:
            raise LoadFailed(f"{program.targets[-1]}() is not in the kernel's BTF")
        target = found
    try:
        return libbpf.load_program(
            program.kind,
            program.name,
            with_kernel_functions(with_maps(program.code, places), kernel),
            program.attach_type,
            target,
        )
    except OSError as error:
        refusal = LoadFailed(f"a BPF program was refused: {error.strerror}")
        for note in getattr(error, "__notes__", []):
            refusal.add_note(note)
        raise refusal from error


def _map(text: str) -> bytes:
    raw = b64decode(text)
    MapInfo.from_buffer_copy(raw)  # raises ValueError if it is too short
    return raw


def _texts(programs: Mapping[str, Program]) -> dict[str, dict[str, Any]]:
    return {name: asdict(one) | {"code": _text(one.code)} for name, one in programs.items()}


def _programs(fields: Mapping[str, Mapping[str, Any]]) -> dict[str, Program]:
    return {name: _program(**values) for name, values in fields.items()}


def _program(kind: int, code: str, targets: list[str], **others: Any) -> Program:
    return Program(kind=ProgType(kind), code=b64decode(code), targets=tuple(targets), **others)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _text(raw: bytes) -> str:
    return b64encode(raw).decode()
