"""The suite finds what is wrong with the textbook datapath, so it is not blind.

Each of these is as on plain TCP over ours (test_behaviours.py).
"""

from __future__ import annotations

from typing import Any

import pytest

from kernel.conformance import differences
from kernel.conformance.behaviours import ALL
from kernel.conformance.catalogue import ALONE
from kernel.conformance.places import Plain, Textbook
from kernel.conformance.runner import run

BY_NAME = {behaviour.name: behaviour for behaviour in ALL}

# What it shows in place of TCP's
WRONG: dict[str, dict[str, Any]] = {
    "stalled_reader": {"taken": 64 << 20},
    "stalled_reader_of_bytes": {"taken": 400_000},
    "large_nonblocking_send": {"taken": 32 << 20},
    "sendfile_to_a_stalled_reader": {"taken": 32 << 20},
    "receive_buffer": {"taken": "1 MiB or more"},
    "writable_again": {"full": "OUT"},
    "send_after_shutdown": {
        "MSG_NOSIGNAL": 5,
        "send": 5,
        "signals": 0,
        "peer": "'beforeafterafter'",
    },
    "deferred_accept": {"stream": "'secondfirst'"},
    "fast_open": {"stream": "'secondfirst'"},
}


@pytest.mark.parametrize("name", WRONG)
def test_found_wrong(name: str, plain: Plain, wrong: Textbook) -> None:
    assert name not in differences.DIFFERENCES
    right = run(BY_NAME[name], ALONE, plain)
    notes = run(BY_NAME[name], ALONE, wrong)
    assert notes == right | WRONG[name]
    assert notes != right
