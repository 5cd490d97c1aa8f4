"""Every command and option of sockredirctl(8) that no other test types.

tests/unit/sockredirctl/test_typed.py compares what is typed with what there is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from pair import MESSAGES, Pair
from shell import Failed, sh
from status import counted, property_of, soon, state

# most of an emulated machine's time goes into starting Python
pytestmark = pytest.mark.userland


@pytest.fixture
def pair(enabled: None) -> Iterator[Pair]:
    with Pair() as both:
        both.send()
        yield both


def test_enable(disabled: None) -> None:
    said = sh(
        "sockredirctl enable --timeout 300 --no-block --cgroup /system.slice"
        " --exclude-cgroup /system.slice/cron.service --addresses host --exclude-port 4711"
    )
    assert "4711" in said
    assert property_of("Scope")["addresses"] == "host"
    sh("sockredirctl enable --configured")
    sh("sockredirctl enable --wait --unit not-yet-there.service")
    sh("sockredirctl disable --timeout 300 --force")
    assert state() == "disabled"


def test_reload(pair: Pair) -> None:
    sh("sockredirctl reload --timeout 300")
    with counted() as change:
        pair.send()
    assert change.messages > MESSAGES / 2


def test_figures(pair: Pair) -> None:
    assert json.loads(sh("sockredirctl status --timeout 300 --json"))["State"] == "enabled"
    assert json.loads(sh("sockredirctl stats --timeout 300 --json"))["active_connections"] >= 1
    assert sh("sockredirctl stats --format openmetrics").endswith("# EOF\n")


def test_connections(pair: Pair) -> None:
    port, pid = pair.server.getsockname()[1], os.getpid()
    (found,) = json.loads(sh(f"sockredirctl list --timeout 300 --json --port {port}"))
    assert found["server"].endswith(f":{port}")
    text = sh(f"sockredirctl list --output wide --no-pager --sort age --limit 5 --pid {pid}")
    assert f":{port}" in text
    text = sh(f"sockredirctl explain --timeout 300 --output wide --no-pager --pid {pid}")
    assert f":{port}" in text
    first = sh(
        "timeout 60 sockredirctl top --timeout 300 --json --sort messages --interval 1 | head -1"
    )
    assert f":{port}" in first


def test_trace(enabled: None) -> None:
    sh("timeout 200 sockredirctl trace --timeout 300 --json > /root/trace 2>&1 &")

    def seen() -> bool:
        with Pair() as both:
            both.send()
        return '"accelerated"' in sh("cat /root/trace")

    soon(seen, "a connection is traced")


def test_learned(enabled: None) -> None:
    assert json.loads(sh("sockredirctl learned --timeout 300 --json")) == []
    assert "no listener is learned" in sh("sockredirctl learned --output wide --no-pager")
    sh("sockredirctl learned --all")
    with pytest.raises(Failed) as caught:
        sh("sockredirctl learned --forget no-such-id")
    assert "no-such-id" in caught.value.output


def test_check(enabled: None) -> None:
    assert json.loads(sh("sockredirctl check --timeout 300 --json"))
    assert "pass" in sh("sockredirctl check --output wide --no-pager || true")


def test_bench(enabled: None) -> None:
    """What a figure is worth where the processor is emulated: nothing; that there is one."""
    rows = json.loads(sh("sockredirctl bench --timeout 300 --json --port 4712"))
    assert rows
    assert all(row["ratio"] > 0 for row in rows)
