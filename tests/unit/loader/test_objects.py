"""Compiled programs as data: what is written is what is read, and damage is seen."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockredird.kernel.uapi import MapInfo, ProgType
from sockredird.loader import objects
from sockredird.loader.objects import Objects, Program, Unreadable

_INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
_OTHERS = st.binary(min_size=8, max_size=8).filter(lambda insn: insn[0] != 0x18)
_MAPS = st.integers(0, 9).map(lambda place: b"\x18\x11\0\0" + place.to_bytes(4, "little"))
_CONSTANTS = _INT32.map(lambda value: b"\x18\x01\0\0" + value.to_bytes(4, "little", signed=True))
_CODE = st.lists(_OTHERS | _MAPS | _CONSTANTS, max_size=40).map(b"".join)
_PROGRAMS = st.builds(
    Program,
    st.sampled_from(ProgType),
    st.text(),
    _CODE,
    st.integers(0, 60),
    st.lists(st.text()).map(tuple),
    st.booleans(),
)
_OBJECTS = st.builds(
    Objects,
    st.dictionaries(st.text(), st.binary(min_size=ctypes.sizeof(MapInfo))),
    st.dictionaries(st.text(), _PROGRAMS),
)


@given(_OBJECTS)
def test_what_is_written_is_read(made: Objects) -> None:
    assert Objects.parse(made.dump()) == made


@given(_OBJECTS, st.data())
def test_damage_is_seen(made: Objects, data: st.DataObject) -> None:
    written = bytearray(made.dump())
    place = data.draw(st.integers(0, len(written) - 1))
    written[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Unreadable):
        Objects.parse(bytes(written))
    with pytest.raises(Unreadable):
        Objects.parse(bytes(written[:place]))


@given(_CODE, st.permutations(range(10)))
def test_maps_are_named_anew_and_nothing_else(code: bytes, fds: list[int]) -> None:
    """As a descriptor, then as a place again."""
    with_fds = objects.with_maps(code, dict(enumerate(fds)))
    for before, after in zip(_instructions(code), _instructions(with_fds), strict=True):
        if before[:2] == b"\x18\x11":
            expected = before[:4] + fds[before[4]].to_bytes(4, "little")
        else:
            expected = before
        assert after == expected
    assert objects.with_maps(with_fds, {fd: place for place, fd in enumerate(fds)}) == code


def test_an_unknown_map() -> None:
    with pytest.raises(KeyError):
        objects.with_maps(b"\x18\x11\0\0\x05\0\0\0", {4: 0})


def _instructions(code: bytes) -> list[bytes]:
    return [code[start : start + 8] for start in range(0, len(code), 8)]
