"""How long `sockredirctl enable` waits for connections that were established before."""

from __future__ import annotations

from typing import Any

import pytest

from sockredirctl.__main__ import _may_join

BLOCKING: list[dict[str, Any]] = [{"reason": "blocking_reader", "connections": 3}]


@pytest.mark.parametrize(
    ("looks", "eligible", "left", "waits"),
    [
        (0, 0, [], True),  # nobody has looked yet
        (1, 0, [], False),
        (1, 2, [], True),  # whether they carry messages is known at the next look
        (2, 3, BLOCKING, False),  # they cannot join
        (2, 4, BLOCKING, True),
    ],
)
def test_it_waits_for_what_may_join(
    looks: int, eligible: int, left: list[dict[str, Any]], waits: bool
) -> None:
    assert _may_join({"looks": looks, "eligible": eligible, "left": left}) == waits
