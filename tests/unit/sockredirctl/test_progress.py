"""What a command is doing, once that takes longer than a second, and on a terminal only."""

from __future__ import annotations

import asyncio
import io
import sys

import pytest

from sockredirctl import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def wait_until_said(terminal: io.StringIO, words: str) -> None:
    while words not in terminal.getvalue():
        await asyncio.sleep(0)


def test_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(progress, "AFTER_S", 0.01)
    asked = 0

    async def more() -> str:
        nonlocal asked
        asked += 1
        return f"{asked} left"

    async def slow() -> None:
        async with progress.shown("counting", more):
            await asyncio.wait_for(wait_until_said(terminal, "3 left"), 20)

    asyncio.run(slow())
    said = terminal.getvalue()
    assert said.count("counting (") == asked
    assert said.endswith("\r\x1b[K")  # nothing of it stays


def test_one_line_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(progress, "AFTER_S", 0.01)
    monkeypatch.setenv("COLUMNS", "20")

    async def slow() -> None:
        async with progress.shown("counting all the sheep there are"):
            await asyncio.wait_for(wait_until_said(terminal, "counting"), 20)

    asyncio.run(slow())
    lines = terminal.getvalue().replace("\x1b[K", "").split("\r")
    assert max(map(len, lines)) < 20


def test_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())

    async def quick() -> None:
        async with progress.shown("counting"):
            await asyncio.sleep(0)

    asyncio.run(quick())
    assert terminal.getvalue() == ""


def test_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    monkeypatch.setattr(progress, "AFTER_S", 0.0)

    async def slow() -> None:
        async with progress.shown("counting"):
            for _ in range(10):
                await asyncio.sleep(0)

    asyncio.run(slow())
    assert file.getvalue() == ""


def test_an_error_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for the detail may fail, too: the call itself says why."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "AFTER_S", 0.0)

    async def more() -> str:
        raise ConnectionError("gone")

    async def failing() -> None:
        async with progress.shown("counting", more):
            await asyncio.sleep(0.01)
            raise LookupError("what failed")

    with pytest.raises(LookupError, match="what failed"):
        asyncio.run(failing())
