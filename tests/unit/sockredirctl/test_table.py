"""Tables fit the terminal: what matters least goes first, names lose their middle."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from sockredirctl import table
from sockredirctl.table import Column

COLUMNS = (
    Column("CLIENT", 0, least=9),
    Column("UNIT", 2, least=10),
    Column("SENT", 1, right=True),
)
ROWS = [
    ("127.0.0.1:41522", "docker-" + "0123456789ab" * 3 + ".scope", "1.5M"),
    ("[::1]:1", "a.service", "12K"),
]


class Terminal(io.StringIO):
    """Standard output that claims to be a terminal."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Not a fixture: pytest puts its own standard output back when the test begins."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    for name in ("NO_COLOR", "SYSTEMD_PAGER", "PAGER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("LINES", "5")
    return terminal


def test_whole() -> None:
    first, *rows = table.text(COLUMNS, ROWS, None).splitlines()
    assert first.split() == ["CLIENT", "UNIT", "SENT"]
    assert [tuple(row.split()) for row in rows] == ROWS


@pytest.mark.parametrize("width", [*range(15, 80), 120])
def test_any_width(width: int) -> None:
    lines = table.text(COLUMNS, ROWS, width).splitlines()
    assert max(map(len, lines)) <= width
    ends = {match.end() for line in lines if (match := re.search(r"(SENT|1\.5M|12K)$", line))}
    assert len(ends) <= 1  # numbers are aligned on the right
    # 9 and 10 columns at the least, 4 for the numbers, and gaps
    assert ("UNIT" in lines[0]) == (width >= 27)
    assert "CLIENT" in lines[0]


def test_both_ends_of_a_name_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    assert table.shortened("postgresql@17-main.service", 13) == "postgr…ervice"
    assert table.shortened("short", 13) == "short"
    terminal.encoding = "ascii"
    assert table.shortened("postgresql@17-main.service", 13) == "postg...rvice"


def test_ids_of_containers() -> None:
    name = f"docker-{'0123456789abcdef' * 4}.scope"
    assert table.short_ids(name) == "docker-0123456789ab.scope"
    assert table.short_ids("postgresql@17-main.service") == "postgresql@17-main.service"


@pytest.mark.parametrize(
    ("count", "size", "number"),
    [
        (0, "0B", "0"),
        (999, "999B", "999"),
        (1000, "1000B", "1.0K"),
        (1023, "1023B", "1.0K"),
        (1024, "1.0K", "1.0K"),
        (1536, "1.5K", "1.5K"),
        (1_048_575, "1.0M", "1.0M"),
        (10 << 20, "10.0M", "10.5M"),
        (3 << 40, "3.0T", "3.3T"),
        (1 << 64, "16.0E", "18.4E"),
    ],
)
def test_units(count: int, size: str, number: str) -> None:
    assert (table.size(count), table.number(count)) == (size, number)


def test_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    assert table.coloured("warn", "yellow") == "\x1b[33mwarn\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert table.coloured("warn", "yellow") == "warn"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert table.coloured("warn", "yellow") == "warn"


def test_no_colour_in_a_pipe() -> None:
    assert table.coloured("warn", "yellow") == "warn"


def test_the_pager_is_for_what_is_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    terminal = on_terminal(monkeypatch)
    paged = tmp_path / "paged"
    monkeypatch.setenv("SYSTEMD_PAGER", f"sh -c 'cat > {paged}'")
    table.show("a\nb", pager=True)
    assert terminal.getvalue() == "a\nb\n"
    long = "line\n" * 50
    table.show(long, pager=True)
    assert paged.read_text() == f"{long}\n"
    table.show(long, pager=False)
    assert terminal.getvalue() == f"a\nb\n{long}\n"
    monkeypatch.setenv("SYSTEMD_PAGER", "")
    table.show(long, pager=True)
    assert terminal.getvalue() == f"a\nb\n{long}\n{long}\n"
    monkeypatch.setenv("SYSTEMD_PAGER", "/nonexistent/pager")
    table.show("last\n" * 50, pager=True)
    assert terminal.getvalue().endswith("last\n\n")
