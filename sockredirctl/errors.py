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
    NOTHING = 6  # nothing matches what was asked for


class ClientError(Exception):
    def __init__(self, text: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(text)
        self.code = code


class NotRunning(ClientError):
    """No daemon owns the name on the bus, and none was started.

    `why`: the text says the reason and the remedy already.
    """

    def __init__(self, text: str = "sockredird is not running", *, why: bool = False) -> None:
        super().__init__(text, Exit.NOT_RUNNING)
        self.why = why


class NoBus(ClientError):
    """The bus cannot be reached, so it is not known whether the daemon runs."""

    def __init__(self, text: str) -> None:
        super().__init__(text, Exit.NOT_RUNNING)
