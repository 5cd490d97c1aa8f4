"""Each barrier of the C has a protocol, and each side of a protocol names the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import pytest

from sockredird.loader.header import BPF_DIR
from support.checkout import REPOSITORY
from unit.bpf.ops import Kind, sites
from unit.bpf.protocols import PROTOCOLS

# A function with the comment before it; those of state.h are what the barriers are made of.
_FUNCTION = re.compile(
    r"(?P<comment>/\*(?:(?!\*/).)*\*/\n)?"
    r"^(?:inline_fn )?\w[\w ]*[ *](?P<name>\w+)\([^;{}]*\)\n\{\n(?P<body>.*?)^\}",
    re.DOTALL | re.MULTILINE,
)
_BARRIER = re.compile(r"\b(?:(load|store|full)_barrier|__sync_lock_test_and_set)\(")
_ROW = re.compile(r"^ \* (\w+)? {2,}(?:.*?\S {2,})?((?:\w+, )*\w+,?)$")


@cache
def functions() -> dict[str, re.Match[str]]:
    texts = [path.read_text() for path in BPF_DIR.rglob("*.[ch]") if path.name != "state.h"]
    return {match["name"]: match for match in _FUNCTION.finditer("\n".join(texts))}


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def barriers_of(name: str, body: str) -> dict[str, Kind]:
    """By the function that calls for them, and numbered if it calls for several."""
    kinds: dict[str, Kind] = {"load": "load", "store": "store", "full": "full", "": "full"}
    found = _BARRIER.findall(without_comments(body))
    names = [f"{name} {number}" for number in range(1, len(found) + 1)]
    places = names if len(found) > 1 else [name]
    return {place: kinds[kind] for place, kind in zip(places, found, strict=False)}


@cache
def in_the_code() -> dict[str, Kind]:
    found: dict[str, Kind] = {}
    for name, match in functions().items():
        found |= barriers_of(name, match["body"])
    return found


def in_the_protocols() -> dict[str, Kind]:
    found: dict[str, Kind] = {}
    for protocol in PROTOCOLS.values():
        for ops in protocol.threads.values():
            found |= sites(ops)
    return found


def function_of(site: str) -> str:
    return site.partition(" ")[0]


def partners(function: str) -> set[str]:
    """Of the other sides of all protocols in which it has a barrier."""
    found: set[str] = set()
    for protocol in PROTOCOLS.values():
        for side, ops in protocol.threads.items():
            if function not in map(function_of, sites(ops)):
                continue
            for other, others in protocol.threads.items():
                if other != side:
                    found |= {*other.split(", "), *map(function_of, sites(others))}
    return found


def table() -> Iterator[tuple[str, set[str]]]:
    """The rows of the table in state.h: a function with barriers, and what they pair with."""
    text = (BPF_DIR / "state.h").read_text()
    function, named = "", set[str]()
    for line in text[text.index(" * in   ") : text.index("struct sock_state {")].splitlines()[1:-1]:
        row = _ROW.match(line)
        assert row, line
        if row[1]:
            if function:
                yield function, named
            function, named = row[1], set()
        named |= set(re.findall(r"\w+", row[2]))
    yield function, named


def test_every_barrier_has_a_protocol() -> None:
    assert in_the_protocols() == in_the_code()


def test_a_new_barrier_is_found() -> None:
    """In a function that has none, and in one that has one."""
    for name in ("may_pause", "quiet"):
        match = functions()[name]
        before = barriers_of(name, match["body"])
        after = barriers_of(name, match["body"] + "	full_barrier(st); /* load_barrier() */\n")
        assert len(after) == len(before) + 1
        assert not after.keys() <= in_the_protocols().keys()


@pytest.mark.parametrize("function", sorted({function_of(site) for site in in_the_code()}))
def test_it_names_the_other_side(function: str) -> None:
    """In the comment before it, or beside the barrier."""
    found = functions()[function]
    named = set(re.findall(r"(\w+)\(\)", " ".join(re.findall(r"/\*.*?\*/", found[0], re.DOTALL))))
    assert named & partners(function)


def test_the_table_has_them() -> None:
    rows = dict(table())
    assert set(rows) == {function_of(site) for site in in_the_code()}
    for function, named in rows.items():
        assert named and named <= partners(function), function


def test_who_announces_is_one_side() -> None:
    """Of some protocol, so that it is known what an announcement by him is for."""
    callers = {
        name
        for name, match in functions().items()
        if "announce_change(" in without_comments(match["body"])
    }
    sides = {
        name for one in PROTOCOLS.values() for side in one.threads for name in side.split(", ")
    }
    assert len(callers) > 2
    assert callers <= sides


def test_the_page_has_the_protocols() -> None:
    page = (REPOSITORY / "docs" / "architecture" / "memory-order.md").read_text()
    assert re.findall(r"^\| ([^|]+?) \| `", page, re.MULTILINE) == list(PROTOCOLS)
