"""loader/header.py reads the C headers, and says so where it cannot.

That it lays structs out as the compiler does is for tests/kernel/loader/test_layout.py.
"""

from __future__ import annotations

import pytest

from sockredird.loader import header
from sockredird.loader.header import read_causes, record

TABLE = """
#define FOR_EACH_CAUSE(CAUSE) \\
	CAUSE(FIRST, DECLINES | RETIRES)   \\
	\\
	CAUSE(SECOND, LISTENER) \\
	CAUSE(THIRD_ONE, UNPROFITABLE)
#define CAUSE_ENUMERATOR(name, flags) CAUSE_##name,
"""


def test_causes() -> None:
    assert read_causes(TABLE) == {
        "first": {"DECLINES", "RETIRES"},
        "second": {"LISTENER"},
        "third_one": {"UNPROFITABLE"},
    }


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("CAUSE(SECOND, LISTENERS)", "SECOND has the unknown flag LISTENERS"),
        ("CAUSE(SECOND, LISTENER | 4)", "SECOND has the unknown flag 4"),
        ("CAUSE(SECOND)", "cannot read"),
        ("CAUSE(SECOND, LISTENER) CAUSE(ANOTHER, RETIRES)", "cannot read"),
        ("REASON(SECOND, LISTENER)", "cannot read"),
    ],
)
def test_a_row_that_is_wrong(row: str, complaint: str) -> None:
    """Were it left out, each cause after it would have the name of the one before."""
    with pytest.raises(KeyError, match=complaint):
        read_causes(TABLE.replace("CAUSE(SECOND, LISTENER)", row))


@pytest.fixture
def headers(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The headers say this instead."""
    text = str(request.param)
    monkeypatch.setattr(header, "_text", lambda: text)
    return text


@pytest.mark.parametrize(
    "headers",
    [
        "struct odd {\n\tvoid *pointer;\n};\n",
        "struct odd {\n\t__u32 bits : 3;\n};\n",
        "struct odd {\n\t__u32 one, two;\n};\n",
        "struct odd {\n\tenum mode mode;\n};\n",
        "struct odd {\n\tunsigned number;\n};\n",
        "struct odd {\n\t__u32 many[NOT_DEFINED];\n};\n",
        "struct odd {\n\tstruct unknown inner;\n};\n",
        "struct odd {\n\t__u8 byte;\n\t__u32 number;\n} __attribute__((packed));\n"
        "struct next {\n\t__u32 number;\n};\n",
        "",
    ],
    indirect=True,
)
@pytest.mark.usefixtures("headers")
def test_a_struct_that_cannot_be_read() -> None:
    with pytest.raises(KeyError):
        record("odd")


@pytest.mark.parametrize("headers", ["enum odd { FIRST, SECOND = 7 };"], indirect=True)
@pytest.mark.usefixtures("headers")
def test_enumerators_that_do_not_count_from_0() -> None:
    with pytest.raises(KeyError, match="SECOND is not 1"):
        header.enumerators("odd")


def test_packing() -> None:
    listener = record("listener")
    raw = listener.pack(netns=5, port=80)
    assert listener.unpack(raw) == (5, 80, 0)
    assert list(listener.iter_unpack(raw * 2)) == [(5, 80, 0)] * 2
    with pytest.raises(TypeError, match="no field ports"):
        listener.pack(ports=80)


def test_nested_structs_and_arrays() -> None:
    event = record("event")
    flow = record("flow").unpack(record("flow").pack(client_ip=(1, 2, 3, 4), netns=5))
    found = event.unpack(event.pack(flow=flow, cpu=3))
    assert found.flow == flow
    assert found.flow.client_ip == (1, 2, 3, 4)
    assert found.totals == ((0, 0, 0), (0, 0, 0))
    assert found.owner[1].comm == bytes(16)
    assert found.cpu == 3
