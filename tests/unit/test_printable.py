"""Nothing that others have named draws on a terminal or forges a line of the log."""

from __future__ import annotations

import io
import logging

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sockredirctl import render
from sockredird import __main__ as daemon
from sockredird.errors import LINES, PERIOD_S, FewLines, printable

HOSTILE = "\x1b[31mA\nB\x07\x7f\x9b2J\u202e\ud800"


@given(st.text())
@example(HOSTILE)
def test_one_line_and_no_control_character(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()
    assert render.printable(text) == shown  # the client has its own, as it imports nothing of ours


def test_bytes_in_hexadecimal() -> None:
    expected = r"\x1b[31mA\x0aB\x07\x7f\xc2\x9b2J\xe2\x80\xae\xed\xa0\x80"
    assert printable(HOSTILE) == expected
    assert render.printable({"a": [HOSTILE, 7]}) == {"a": [expected, 7]}
    assert printable("Zürich \\ 東京") == "Zürich \\ 東京"


@pytest.mark.parametrize("journal", [False, True])
def test_a_record_is_a_line(monkeypatch: pytest.MonkeyPatch, journal: bool) -> None:
    monkeypatch.setattr(daemon, "_to_journal", lambda: journal)
    monkeypatch.setattr("sys.stderr", stderr := io.StringIO())
    monkeypatch.setattr(logging, "basicConfig", lambda level, handlers: found.extend(handlers))
    found: list[logging.Handler] = []
    daemon._set_up_logging("info", command=False)
    (handler,) = found
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("connections to %s stay on TCP", HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("of %s", HOSTILE)
    lines = stderr.getvalue().removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines)
    assert lines[0].endswith(r"A\x0aB\x07\x7f\xc2\x9b2J\xe2\x80\xae\xed\xa0\x80 stay on TCP")
    assert lines[2] == "Traceback (most recent call last):"


def test_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Of what any user causes there are so many in a minute, and then how many were left out."""
    now = 0.0
    lines = FewLines(logging.getLogger("test"), lambda: now)
    with caplog.at_level(logging.INFO, "test"):
        for number in range(3 * LINES):
            lines.info("line %d", number)
        assert [r.getMessage() for r in caplog.records] == [f"line {n}" for n in range(LINES)]
        caplog.clear()
        now = PERIOD_S
        lines.warning("another")
        told = [record.getMessage() for record in caplog.records]
    assert told == [f"{2 * LINES} more lines like these were left out", "another"]
