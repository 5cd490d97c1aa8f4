"""What users are told: the errors that a caller can get, and texts that are safe to log.

Each error maps to one D-Bus error name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LINES = 20
PERIOD_S = 60.0


class SockredirError(Exception):
    """Base of all errors whose text is meant for the user: cause and remedy, no traceback."""

    name = "Internal"


class AccessDenied(SockredirError):
    name = "AccessDenied"


class InvalidConfig(SockredirError):
    name = "InvalidConfig"


class UnsupportedKernel(SockredirError):
    name = "UnsupportedKernel"


class LoadFailed(SockredirError):
    name = "LoadFailed"


class Busy(SockredirError):
    name = "Busy"


class Internal(SockredirError):
    pass


class BusUnavailable(SockredirError):
    """There is no bus, or no name on it, so no caller gets this."""


class AlreadyRunning(SockredirError):
    """Another daemon holds the lock, so no caller gets this."""


def printable(text: str) -> str:
    r"""`text` on one line: the UTF-8 bytes of what str.isprintable() refuses become \xNN.

    Names of processes, units and paths are chosen by others, who could otherwise draw on the
    terminal of whoever reads the log, or write lines of it. Backslashes stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogatepass"))


class FewLines:
    """Logs what programs of any user cause: no more than LINES in PERIOD_S."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._began = clock()
        self._lines = 0

    def info(self, text: str, *values: object) -> None:
        self._note(logging.INFO, text, *values)

    def warning(self, text: str, *values: object) -> None:
        self._note(logging.WARNING, text, *values)

    def _note(self, level: int, text: str, *values: object) -> None:
        now = self._clock()
        if now - self._began >= PERIOD_S:
            if self._lines > LINES:
                self._log.log(level, "%d more lines like these were left out", self._lines - LINES)
            self._began, self._lines = now, 0
        self._lines += 1
        if self._lines <= LINES:
            self._log.log(level, text, *values)
