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


class ClientError(Exception):
    def __init__(self, text: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(text)
        self.code = code
