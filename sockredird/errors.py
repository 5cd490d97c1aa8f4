"""The errors that a caller can get. Each maps to one D-Bus error name."""

from __future__ import annotations


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
