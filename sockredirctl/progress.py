"""What a command is doing, on the terminal, once it takes longer than a second."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

AFTER_S = 1.0


@asynccontextmanager
async def shown(
    words: str, more: Callable[[], Awaitable[str]] | None = None
) -> AsyncIterator[None]:
    """Shows `words` on standard error, with `more` asked each second, until the block ends."""
    if not sys.stderr.isatty():
        yield
        return
    task = asyncio.create_task(_show(words, more))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):  # a detail that is not known is left out
            await task


async def _show(words: str, more: Callable[[], Awaitable[str]] | None) -> None:
    seconds = AFTER_S
    await asyncio.sleep(AFTER_S)
    try:
        while True:
            detail = f", {await more()}" if more is not None else ""
            line = f"{words} ({seconds:.0f} s{detail}) ..."
            # one line of the terminal; \x1b[K clears the rest of a longer one
            line = line[: shutil.get_terminal_size().columns - 1]
            print(f"\r{line}\x1b[K", end="", file=sys.stderr)
            sys.stderr.flush()
            await asyncio.sleep(AFTER_S)
            seconds += AFTER_S
    finally:
        print("\r\x1b[K", end="", file=sys.stderr)
        sys.stderr.flush()
