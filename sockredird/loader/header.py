"""Structs, enumerations and causes of the datapath, read from its C headers.

The C is the only place where a record is laid out. Structs are laid out as the BPF target does:
each scalar is aligned to its size, in the machine's byte order.
"""

from __future__ import annotations

import re
import struct
from collections import namedtuple
from collections.abc import Iterator
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

BPF_DIR = Path(__file__).parents[1] / "bpf"
HEADERS = ("causes.h", "state.h", "peer_state.h")
CAUSE_FLAGS = frozenset(
    {"DECLINES", "RETIRES", "LISTENER", "UNPROFITABLE", "PAUSES"}
)  # see causes.h
_CODES = {
    **{"char": "s", "__u8": "B", "__s8": "b", "__u16": "H", "__s16": "h"},
    **{"__u32": "I", "__s32": "i", "__u64": "Q", "__s64": "q"},
}
_MEMBER = re.compile(r"\s*(?:struct (\w+)|(\w+))\s+(\w+)(?:\[([^]]+)\])?\s*")


class Record:
    """One struct. Values are named tuples: nested structs and arrays of structs are, too.

    A char array is bytes; an array of other scalars is a tuple of numbers.
    """

    def __init__(self, name: str, members: list[tuple[str, str | Record, int]]) -> None:
        """`members`: name, scalar type or record, and how many (0: not an array)."""
        self.name = name
        self.offsets: dict[str, int] = {}
        self.alignment = 1
        self.size: int
        self.codes: str
        self._members = members
        # where the members are among the values of struct: those of scalars, and of the rest a part
        places: list[int | slice] = []
        self._nested: list[tuple[int, Record, int]] = []  # which member, its record, how many
        self.values = 0
        end, codes = 0, ["="]
        for field, kind, count in members:
            first, single = self.values, False
            if isinstance(kind, Record):
                size, align, code = kind.size, kind.alignment, kind.codes[1:] * (count or 1)
                self._nested.append((len(places), kind, count))
                self.values += kind.values * (count or 1)
            else:
                size = align = struct.calcsize("=" + _CODES[kind])
                code = f"{count or ''}{_CODES[kind]}"
                single = not count or kind == "char"
                self.values += 1 if single else count
            places.append(first if single else slice(first, self.values))
            start = -(-end // align) * align
            codes += ["x" * (start - end), code]
            self.offsets[field] = start
            end = start + size * (count or 1)
            self.alignment = max(self.alignment, align)
        self.size = -(-end // self.alignment) * self.alignment
        self.codes = "".join([*codes, "x" * (self.size - end)])
        self._struct = struct.Struct(self.codes)
        self._tuple: Any = namedtuple(name, self.offsets)  # type: ignore[misc]
        # twice one of them, as one alone would not be put into a tuple
        self._select: Any = itemgetter(*places, places[0])

    def unpack(self, raw: bytes) -> Any:
        """Raises struct.error unless `raw` is as long as the struct."""
        return self._build(self._struct.unpack(raw))

    def iter_unpack(self, raw: bytes | bytearray) -> Iterator[Any]:
        for values in self._struct.iter_unpack(raw):
            yield self._build(values)

    def pack(self, **values: Any) -> bytes:
        """Fields that are not named are 0. A nested struct is bytes, or what unpack() gives."""
        raw = bytearray(self.size)
        for field, kind, count in self._members:
            if field not in values:
                continue
            value = values.pop(field)
            at = self.offsets[field]
            if isinstance(kind, Record):
                inner = value if isinstance(value, bytes) else kind.pack(**value._asdict())
                raw[at : at + len(inner)] = inner
            elif count and kind != "char":
                struct.pack_into(f"={count}{_CODES[kind]}", raw, at, *value)
            else:
                struct.pack_into(f"={count or ''}{_CODES[kind]}", raw, at, value)
        if values:
            raise TypeError(f"struct {self.name} has no field {', '.join(values)}")
        return bytes(raw)

    def _build(self, values: tuple[Any, ...]) -> Any:
        members = list(self._select(values))
        members.pop()
        for at, kind, count in self._nested:
            part, size = members[at], kind.values
            built = tuple(kind._build(part[n : n + size]) for n in range(0, len(part), size))
            members[at] = built if count else built[0]
        return self._tuple._make(members)


@cache
def _text() -> str:
    """The headers without their comments."""
    text = "\n".join((BPF_DIR / name).read_text() for name in HEADERS)
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


@cache
def record(name: str) -> Record:
    """`struct name`. Raises KeyError if the headers have none that can be read."""
    body = re.search(rf"^struct {name} \{{\n(.*?)^\}};", _text(), re.DOTALL | re.MULTILINE)
    if body is None:
        raise KeyError(f"no struct {name}")
    members: list[tuple[str, str | Record, int]] = []
    for member in filter(str.strip, body[1].split(";")):
        match = _MEMBER.fullmatch(member)
        if match is None:
            raise KeyError(f"struct {name}: cannot read {member.strip()!r}")
        inner, scalar, field, count = match.groups()
        kind = record(inner) if inner else scalar
        members.append((field, kind, constant(count) if count else 0))
    return Record(name, members)


def constant(text: str) -> int:
    """A number, a product or quotient of numbers, or a macro that stands for one."""
    number = re.fullmatch(r"(\w+)(?:\s*([*/])\s*(\w+))?", text.strip())
    if number is None:
        raise KeyError(f"{text!r} is no constant")
    if number[2]:
        left, right = constant(number[1]), constant(number[3])
        return left * right if number[2] == "*" else left // right
    plain = re.fullmatch(r"(0x[0-9a-fA-F]+|\d+)[UL]*", text.strip())
    if plain:
        return int(plain[1], 0)
    defined = re.search(rf"^#define\s+{text.strip()}\s+(\w+)", _text(), re.MULTILINE)
    if defined is None:
        raise KeyError(f"no constant {text}")
    return constant(defined[1])


@cache
def enumerators(enum: str) -> tuple[str, ...]:
    """The names of `enum enum`, whose values count from 0, in their order."""
    body = re.search(rf"enum {enum} \{{(.*?)\}};", _text(), re.DOTALL)
    if body is None:
        raise KeyError(f"no enum {enum}")
    names = []
    for number, one in enumerate(filter(str.strip, body[1].split(","))):
        name, _, value = map(str.strip, one.partition("="))
        if value and value != str(number):
            raise KeyError(f"enum {enum}: {name} is not {number}")
        names.append(name)
    return tuple(names)


@cache
def causes() -> dict[str, frozenset[str]]:
    """The rows of causes.h: names in lower case, in the order of enum cause, with their flags."""
    return read_causes(_text())


def read_causes(text: str) -> dict[str, frozenset[str]]:
    """causes() of a text without comments. Raises KeyError for a row that it cannot read."""
    table = re.search(r"^#define FOR_EACH_CAUSE\(CAUSE\)((?:.*\\\n)*.*)$", text, re.MULTILINE)
    if table is None:
        raise KeyError("no table of causes")
    found = {}
    for row in filter(None, (line.strip() for line in table[1].split("\\\n"))):
        match = re.fullmatch(r"CAUSE\((\w+),\s*([\w\s|]+)\)", row)
        if match is None:
            raise KeyError(f"cannot read the cause {row!r}")
        flags = frozenset(flag.strip() for flag in match[2].split("|"))
        if unknown := flags - CAUSE_FLAGS:
            raise KeyError(f"cause {match[1]} has the unknown flag {', '.join(unknown)}")
        found[match[1].lower()] = flags
    return found
