"""btf.py reads the same offsets out of the kernel's BTF as bpftool does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from sockredird.errors import UnsupportedKernel
from sockredird.loader import offsets
from sockredird.loader.btf import Field, KernelTypes

FIELDS = [
    *offsets._REQUIRED,
    *offsets._OPTIONAL,
    ("sock", "sk_timer"),
    ("inet_connection_sock", "icsk_delack_timer"),
    ("timer_list", "entry.pprev"),
    ("tcp_sock", "inet_conn.icsk_inet.sk.sk_rcvbuf"),  # structs in structs
    ("sk_buff", "next"),  # in a struct in a union, both without a name
    ("tcphdr", "syn"),  # one bit
    ("tcphdr", "doff"),  # four of them
]
PEELED = ("TYPEDEF", "CONST", "VOLATILE", "RESTRICT", "TYPE_TAG")


class Dump:
    """An independent reader: bpftool's."""

    def __init__(self) -> None:
        command = ["bpftool", "-j", "btf", "dump", "file", "/sys/kernel/btf/vmlinux"]
        answer = subprocess.run(command, capture_output=True, check=True)
        types = json.loads(answer.stdout)["types"]
        self._by_id: dict[int, dict[str, Any]] = {entry["id"]: entry for entry in types}
        self._structs = {e["name"]: e for e in reversed(types) if e["kind"] == "STRUCT"}

    def place(self, struct: str, path: str) -> tuple[int, int] | None:
        """Bit offset and bit-field size."""
        here = self._structs[struct]
        bits = size = 0
        for name in path.split("."):
            found = self._member(here, name)
            if found is None:
                return None
            bits += found[0]
            size, here = found[1], self._peel(found[2])
        return bits, size

    def _peel(self, type_id: int) -> dict[str, Any]:
        here = self._by_id.get(type_id, {"kind": "VOID"})
        while here["kind"] in PEELED:
            here = self._by_id[here["type_id"]]
        return here

    def _member(self, struct: dict[str, Any], name: str) -> tuple[int, int, int] | None:
        for member in struct.get("members", []):
            if member["name"] == name:
                return member["bits_offset"], member.get("bitfield_size", 0), member["type_id"]
            if member["name"] in ("", "(anon)"):
                inner = self._member(self._peel(member["type_id"]), name)
                if inner is not None:
                    return member["bits_offset"] + inner[0], inner[1], inner[2]
        return None


@pytest.fixture(scope="module")
def dump() -> Dump:
    return Dump()


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelTypes]:
    types = KernelTypes()
    yield types
    types.close()


@pytest.mark.parametrize(("struct", "path"), FIELDS, ids=map("/".join, FIELDS))
def test_the_same_place(kernel: KernelTypes, dump: Dump, struct: str, path: str) -> None:
    place = dump.place(struct, path)
    field = kernel.field(struct, path)
    if place is None:
        assert field is None
        return
    bits, size = place
    assert field is not None
    assert field.offset == bits // 8
    if size:
        assert field == Field(bits // 8, ((1 << size) - 1) << bits % 8, bits % 8)
    else:
        assert (field.mask, field.shift) == (0xFF, 0)


@pytest.mark.parametrize(
    ("struct", "path"),
    [("sock", "no_such_field"), ("no_such_struct", "a"), ("sock", "sk_rcvbuf.inside_an_int")],
)
def test_no_such_field(kernel: KernelTypes, struct: str, path: str) -> None:
    assert kernel.field(struct, path) is None


def test_an_enumerator(kernel: KernelTypes) -> None:
    assert kernel.enumerator("sock_flags", "SOCK_DEAD") == 0
    assert kernel.enumerator("bpf_map_type", "BPF_MAP_TYPE_SOCKHASH") == 18
    assert kernel.enumerator("sock_flags", "SOCK_NO_SUCH") is None
    assert kernel.enumerator("no_such_enum", "SOCK_DEAD") is None


def test_a_kernel_without_a_field(monkeypatch: pytest.MonkeyPatch, kernel: KernelTypes) -> None:
    monkeypatch.setattr(offsets, "_REQUIRED", (*offsets._REQUIRED, ("sock", "sk_no_such")))
    with pytest.raises(UnsupportedKernel, match="struct sock has no field sk_no_such"):
        offsets.compiler_flags(kernel)


@pytest.mark.parametrize(
    ("struct", "member", "names"),
    [
        ("inet_connection_sock", "timer_list", ("icsk_delack_timer", "icsk_retransmit_timer")),
        ("sk_buff", "rb_node", ("rbnode",)),  # in a union without a name
        ("sk_buff", "timer_list", ()),
        ("sk_buff", "no_such_struct", ()),
    ],
)
def test_members_of_one_type(
    kernel: KernelTypes, dump: Dump, struct: str, member: str, names: tuple[str, ...]
) -> None:
    places = {dump.place(struct, name) for name in names} - {None}  # kernels have others, too
    found = kernel.offsets(struct, member)
    assert len(found) >= len(names)
    assert places <= {(8 * offset, 0) for offset in found}
    assert found or not names
