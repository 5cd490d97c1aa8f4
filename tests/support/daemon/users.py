"""Running as somebody else than root."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from support.processes import run

NOBODY = 65534
DAEMON = 1  # the other one that every Debian has; the bus wants users with a name


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def as_nobody(function: Callable[..., Any], *arguments: Any) -> Any:
    """Result of a function in a child without privileges; fails the test if it raised."""

    def body() -> Any:
        become(NOBODY)
        return function(*arguments)

    return run(body)


def main_as_nobody(main: Callable[[], int], *arguments: str, **variables: str) -> tuple[int, str]:
    """Exit status and stderr of a command line whose module is imported already.

    In this process image, as the checkout may be out of nobody's reach.
    """

    def body() -> tuple[int, str]:
        sys.argv = ["test", *arguments]
        os.environ.update(variables)
        logging.getLogger().handlers.clear()  # pytest's
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            status = main()
        return int(status), stderr.getvalue()

    status, text = as_nobody(body)
    return status, text
