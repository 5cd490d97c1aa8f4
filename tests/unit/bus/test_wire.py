"""The stream is cut into its messages, however it arrives; large ones are not kept."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sockredird.bus import wire
from sockredird.bus.wire import BODY_LIMIT, FIELDS_LIMIT, Frame, Framer, Malformed
from support.daemon import raw

FIELDS: dict[int, str | int] = {1: "/a", 2: "a.b", 3: "M", 6: "c.d", 7: ":1.2", 8: "ay", 9: 3}


def cut(stream: bytes, sizes: list[int]) -> list[Frame]:
    """What a framer makes of a stream that arrives in pieces of these sizes, and then whole."""
    framer, frames = Framer(), []
    for size in sizes:
        frames += framer.feed(stream[:size])
        stream = stream[size:]
    return frames + list(framer.feed(stream))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    kind, serial = draw(st.integers(1, 4)), draw(st.integers(1, 2**32 - 1))
    body = bytes(draw(st.sampled_from([0, 1, 100, BODY_LIMIT, BODY_LIMIT + 1, 3 * BODY_LIMIT])))
    fields = dict(FIELDS)
    if draw(st.booleans()):
        fields[1] = "/" + "a" * draw(st.sampled_from([1, 500, FIELDS_LIMIT, 5 * FIELDS_LIMIT]))
    return raw.build(kind, serial, fields, body, endian=draw(st.sampled_from("<>")))


@given(st.lists(messages(), max_size=6), st.lists(st.integers(1, 3 * BODY_LIMIT), max_size=20))
def test_pieces_do_not_matter(stream: list[bytes], sizes: list[int]) -> None:
    frames = cut(b"".join(stream), sizes)
    assert [frame.end - frame.start for frame in frames] == [len(message) for message in stream]
    at = 0
    for frame, message in zip(frames, stream, strict=True):
        assert frame.start == at
        at = frame.end
        endian = "<" if message[:1] == b"l" else ">"
        body, serial, fields = struct.unpack_from(f"{endian}III", message, 4)
        if fields > FIELDS_LIMIT:
            assert (frame.header, frame.raw) == (None, b"")
            continue
        header = frame.header
        assert header is not None
        assert (header.serial, header.body_bytes, header.fds) == (serial, body, 3)
        assert (header.member, header.sender, header.signature) == ("M", ":1.2", "ay")
        assert frame.raw == (message if body <= BODY_LIMIT else b"")


def test_a_large_message_is_known_by_its_header_and_never_kept() -> None:
    message = raw.build(wire.METHOD_CALL, 7, FIELDS, bytes(33_000_000))
    framer = Framer()
    head = len(message) - 33_000_000
    (frame,) = framer.feed(message[:head])
    assert (frame.header.serial if frame.header else 0, frame.raw) == (7, b"")
    for at in range(head, len(message), 1 << 16):
        assert list(framer.feed(message[at : at + (1 << 16)])) == []
        assert len(framer._buffer) == 0
    assert framer.unframed == len(message)
    (frame,) = framer.feed(raw.build(wire.METHOD_CALL, 8, FIELDS))
    assert frame.header is not None and frame.header.serial == 8


@pytest.mark.parametrize("stream", [b"x" * 16, b"l\1\0\2" + bytes(12), b"l\1\0\1" + b"\xff" * 12])
def test_what_cannot_be_cut(stream: bytes) -> None:
    with pytest.raises(Malformed):
        list(Framer().feed(stream))


@pytest.mark.parametrize(
    "fields",
    [
        b"\x0a\1s\0\1\0\0\0a\0",  # a code that there is not
        b"\1\1u\0\1\0\0\0",  # a path that is a number
        b"\3\1s\0\xff\0\0\0a\0",  # longer than all fields
        b"\3\1s\0\1\0\0\0ab",  # without an end
        b"\3\1s\0\1\0\0\0\xff\0",  # no UTF-8
        b"\3\1s",
        b"\3",
    ],
)
def test_malformed_fields(fields: bytes) -> None:
    """The message is given up, and not the stream."""
    head = struct.pack("<cBBBIII", b"l", 1, 0, 1, 0, 9, len(fields))
    framer = Framer()
    frames = list(framer.feed(head + fields + bytes(-len(fields) % 8)))
    assert [frame.header for frame in frames] == [None]
    (frame,) = framer.feed(raw.build(wire.METHOD_CALL, 8, FIELDS))
    assert frame.header is not None
