"""Sizes and offsets of the structs in bpf/sockredir.h, worked out from their text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HEADER = Path(__file__).parents[2] / "sockredird" / "bpf" / "sockredir.h"
_SCALARS = {"char": 1, "__u8": 1, "__u16": 2, "__u32": 4, "__u64": 8}


@dataclass(frozen=True)
class Struct:
    size: int
    alignment: int
    offsets: dict[str, int]


def header() -> str:
    """The text without its comments."""
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


def constant(text: str) -> int:
    """A number, or a macro or enumerator of the header that stands for one."""
    if text.isdigit():
        return int(text)
    defined = re.search(rf"#define\s+{text}\s+(\d+)", header())
    return int(defined[1]) if defined else enumerators_of(text)


def enumerators_of(last: str) -> int:
    return enumerators("counter").index(last)


def enumerators(enum: str) -> list[str]:
    body = re.search(rf"enum {enum} \{{(.*?)\}};", header(), flags=re.DOTALL)
    assert body, f"no enum {enum}"
    return [name.split("=")[0].strip() for name in body[1].split(",") if name.strip()]


def struct(name: str) -> Struct:
    """Laid out by the rules of the BPF target: every scalar aligned to its size."""
    body = re.search(rf"^struct {name} \{{\n(.*?)^\}};", header(), flags=re.DOTALL | re.MULTILINE)
    assert body, f"no struct {name}"
    size, alignment = 0, 1
    offsets = {}
    for member in body[1].split(";"):
        if not member.strip():
            continue
        match = re.fullmatch(r"\s*(struct \w+|\w+)\s+(\w+)(?:\[(\w+)\])?\s*", member)
        assert match, f"cannot read {member!r}"
        kind, field, count = match.groups()
        if kind.startswith("struct "):
            inner = struct(kind.removeprefix("struct "))
            one, align = inner.size, inner.alignment
        else:
            one = align = _SCALARS[kind]
        size = -(-size // align) * align
        offsets[field] = size
        size += one * (constant(count) if count else 1)
        alignment = max(alignment, align)
    return Struct(-(-size // alignment) * alignment, alignment, offsets)
