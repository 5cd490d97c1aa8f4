"""Exit codes, and the errors that carry them."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    DENIED = 4
    TIMED_OUT = 5
    NOTHING = 6  # what was asked for is not there


class ClientError(Exception):
    def __init__(self, text: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(text)
        self.code = code


class NotRunning(ClientError):
    """Nobody owns the name on the bus, and nobody was started for it.

    `why`: the text says why, and what to do.
    """

    def __init__(self, text: str = "sockredird is not running", *, why: bool = False) -> None:
        super().__init__(text, Exit.NOT_RUNNING)
        self.why = why


class NoBus(ClientError):
    """The daemon may run, or not: nobody can be asked."""

    def __init__(self, text: str) -> None:
        super().__init__(text, Exit.NOT_RUNNING)
