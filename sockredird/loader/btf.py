"""Offsets of kernel struct fields, from the running kernel's BTF (/sys/kernel/btf/vmlinux).

Layout of struct btf_type and its members: include/uapi/linux/btf.h.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import c_uint32
from dataclasses import dataclass

from sockredird.errors import UnsupportedKernel
from sockredird.kernel.libbpf_prototypes import lib

KIND_STRUCT = 4
KIND_UNION = 5
KIND_ENUM = 6
KIND_TYPEDEF = 8
KIND_FUNC = 12
_QUALIFIERS = {KIND_TYPEDEF, 9, 10, 11, 18}  # volatile, const, restrict, type_tag


@dataclass(frozen=True)
class Field:
    """Where a field is: whole bytes (`mask` 0xff, `shift` 0), or bits of the byte at `offset`."""

    offset: int
    mask: int = 0xFF
    shift: int = 0


class _Type(ctypes.Structure):
    _fields_ = [("name_off", c_uint32), ("info", c_uint32), ("size_or_type", c_uint32)]


class _Member(ctypes.Structure):
    _fields_ = [("name_off", c_uint32), ("type", c_uint32), ("offset", c_uint32)]


class _Enumerator(ctypes.Structure):
    _fields_ = [("name_off", c_uint32), ("value", ctypes.c_int32)]


class KernelTypes:
    """The types of the running kernel. Raises UnsupportedKernel if the kernel has no BTF."""

    def __init__(self) -> None:
        self._btf = lib.btf__load_vmlinux_btf()
        if not self._btf:
            raise UnsupportedKernel(
                "the kernel has no BTF (/sys/kernel/btf/vmlinux): "
                "a kernel built with CONFIG_DEBUG_INFO_BTF=y is needed"
            )
        self._found: dict[tuple[str, int], int | None] = {}

    def close(self) -> None:
        if self._btf:
            lib.btf__free(self._btf)
            self._btf = None

    def field(self, struct: str, path: str) -> Field | None:
        """Where a field is, such as ('sock', '__sk_common.skc_refcnt'); None if there is none.

        The members of anonymous structs and unions count as members of what contains them.
        """
        type_id = self._find(struct, KIND_STRUCT)
        bits, size = 0, 0
        for name in path.split("."):
            found = self._member(type_id, name) if type_id is not None else None
            if found is None:
                return None
            offset, size, type_id = found
            bits += offset
        if size:
            return Field(bits // 8, mask=((1 << size) - 1) << bits % 8, shift=bits % 8)
        return Field(bits // 8)

    def offsets(self, struct: str, member: str) -> list[int]:
        """Offsets, in bytes, of the members of struct `struct` whose type is struct `member`.

        The members of anonymous structs and unions count as members of what contains them.
        """
        outer, wanted = self._find(struct, KIND_STRUCT), self._find(member, KIND_STRUCT)
        if outer is None or wanted is None:
            return []
        return [bits // 8 for bits in self._places(outer, wanted)]

    def enumerator(self, enum: str, name: str) -> int | None:
        type_id = self._find(enum, KIND_ENUM)
        if type_id is None:
            return None
        address, header = self._type(type_id)
        table = (_Enumerator * (header.info & 0xFFFF)).from_address(address + ctypes.sizeof(_Type))
        return next((e.value for e in table if self._name(e.name_off) == name), None)

    def arguments(self, function: str) -> int | None:
        """How many arguments a kernel function has; None if there is no such function."""
        type_id = self.function(function)
        if type_id is None:
            return None
        _address, header = self._type(type_id)
        _address, prototype = self._type(header.size_or_type)
        return int(prototype.info & 0xFFFF)

    def struct(self, name: str) -> int | None:
        """The id of a struct; None if there is no such one."""
        return self._find(name, KIND_STRUCT)

    def function(self, name: str) -> int | None:
        """The type id of a kernel function; None if there is no such function."""
        return self._find(name, KIND_FUNC)

    def _find(self, name: str, kind: int) -> int | None:
        # libbpf compares a name with those of more than 100,000 types, and some are asked for often
        if (name, kind) not in self._found:
            type_id: int = lib.btf__find_by_name_kind(self._btf, name.encode(), kind)
            self._found[name, kind] = type_id if type_id >= 0 else None
        return self._found[name, kind]

    def _type(self, type_id: int) -> tuple[int, _Type]:
        address: int = lib.btf__type_by_id(self._btf, type_id)
        return address, _Type.from_address(address)

    def _name(self, offset: int) -> str:
        name: bytes = lib.btf__name_by_offset(self._btf, offset)
        return name.decode()

    def _members(self, type_id: int) -> Iterator[tuple[str, int, int, int]]:
        """(name, bit offset, size of the bit field or 0, type id) of each member.

        Typedefs and qualifiers of the struct's own type are followed.
        """
        address, header = self._type(type_id)
        while (header.info >> 24) & 0x1F in _QUALIFIERS:
            address, header = self._type(header.size_or_type)
        if (header.info >> 24) & 0x1F not in (KIND_STRUCT, KIND_UNION):
            return
        has_bit_fields = header.info >> 31
        table = (_Member * (header.info & 0xFFFF)).from_address(address + ctypes.sizeof(_Type))
        for member in table:
            offset, size = member.offset, 0
            if has_bit_fields:
                offset, size = member.offset & 0xFFFFFF, member.offset >> 24
            yield self._name(member.name_off), offset, size, member.type

    def _places(self, type_id: int, wanted: int) -> Iterator[int]:
        """Bit offsets of the members that have the type `wanted`."""
        for name, offset, _size, member_type in self._members(type_id):
            if member_type == wanted:
                yield offset
            elif not name:
                yield from (offset + inner for inner in self._places(member_type, wanted))

    def _member(self, type_id: int, wanted: str) -> tuple[int, int, int] | None:
        for name, offset, size, member_type in self._members(type_id):
            if name == wanted:
                return offset, size, member_type
            if not name:
                inner = self._member(member_type, wanted)
                if inner is not None:
                    return offset + inner[0], inner[1], inner[2]
        return None
