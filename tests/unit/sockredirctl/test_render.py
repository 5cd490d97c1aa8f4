"""Status fits on a terminal of 80 columns, whatever there is to say."""

from __future__ import annotations

from typing import Any

import pytest

from sockredirctl import render
from sockredird.datapath.causes import sentence
from sockredird.loader.records import COUNTERS

MANY = 10**9
STATS = dict.fromkeys([*COUNTERS, "active_connections", "map_entries", "map_capacity"], MANY) | {
    "declined_connections": 10 * MANY,
    "declined_early_data": MANY + 1,
    "retired_connections": 10 * MANY,
}
UNIT = "postgresql@{}-main.service"
LIVE = {
    "looks": 2,
    "eligible": MANY,
    "joined": MANY,
    "left": [
        {
            "unit": UNIT.format(number),
            "reason": "blocking_reader",
            "connections": MANY,
            "detail": sentence("blocking_reader"),
        }
        for number in range(12, 17)
    ],
}
PROPERTIES: dict[str, Any] = {
    "Version": "0.1.0",
    "State": "enabled",
    "Since": 1,
    "Units": {},
    "Problem": "cgroup /sys/fs/cgroup/system.slice/some.service was removed; " * 3,
    "Scope": {
        "addresses": "loopback",
        "units": [],
        "cgroup": "/system.slice/redis-server.service",
        "only_ports": list(range(6000, 6030)),
        "exclude_ports": [21, 23, 513, 514],
        "exclude_cgroups": [],
        "exclude_units": ["haproxy.service"],
    },
    "Sources": {"cgroup": "option", "exclude_ports": "file+option", "only_ports": "file"},
    "Kernel": {
        "release": "6.1.0-53",
        "checked": True,
        "passed": 13,
        "warned": 2,
        "noted": 1,
        "failed": 1,
    },
    "LiveConnections": LIVE,
}


@pytest.mark.parametrize(
    "properties",
    [
        {**PROPERTIES, "LiveConnections": {**LIVE, "left": []}},
        {**PROPERTIES, "Problem": "", "Scope": {**PROPERTIES["Scope"], "only_ports": [6029]}},
    ],
    ids=["a problem", "connections not joined"],
)
def test_status_fits(properties: dict[str, Any]) -> None:
    lines = render.status(properties, STATS, 100.0, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    text = " ".join(word for line in lines for word in line.split())
    for value in (properties["Problem"].strip(), "6029", "(early_data 1,000,000,001, "):
        assert value in text
    if properties["LiveConnections"]["left"]:
        shown = "1,000,000,000 of postgresql@13-main.service, and 3 more units: a program sleeps "
        assert f"Not joined: 1,000,000,000 of {UNIT.format(12)}, " in text
        assert shown in text
