"""explain knows the accelerated connections of other network namespaces, as list does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support import namespaces
from support.daemon import load
from support.daemon.client import Client
from support.daemon.host import Host

NOTHING = 6


def begin() -> None:
    namespaces.enter_network()
    load.start(2, 0.05)  # so that no pair leaves meanwhile


def answers(host: Host, *arguments: str) -> list[dict[str, Any]]:
    done = host.ctl("explain", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_explain_finds_what_list_finds(host: Host, enabled: Client) -> None:
    actor = host.actor()
    actor.do(begin)
    actor.do(load.advance, 5)
    listed = {c["client"]: c for c in json.loads(host.ctl("list", "--json").stdout)}
    assert len(listed) == 2
    port = next(iter(listed.values()))["server"].rpartition(":")[2]
    for way in (("--port", port), ("--unit", host.scope), ("--pid", str(actor.pid))):
        found = {a["client"]: a for a in answers(host, *way) if a["kind"] == "connection"}
        assert found.keys() & listed.keys(), way
        for answer in found.values():
            assert (answer["state"], answer["reason"], answer["detail"]) == ("accelerated", "", "")
            assert answer["netns"] == listed[answer["client"]]["netns"]
    one = next(iter(listed.values()))
    for ends in ((one["client"], one["server"]), (one["server"], one["client"])):
        (answer,) = answers(host, *ends)
        assert answer["client"] == one["client"]
    text = host.ctl("explain", one["client"], one["server"]).stdout
    assert "accelerated" in text
    actor.do(load.finish)


@pytest.mark.parametrize("command", ["list", "explain"])
def test_why_nothing_is_found_there(host: Host, enabled: Client, command: str) -> None:
    actor = host.actor()
    actor.do(namespaces.enter_network)
    done = host.ctl(command, "--pid", str(actor.pid))
    assert (done.returncode, done.stdout) == (NOTHING, "")
    assert f"[{actor.pid}] is in another network namespace" in done.stderr
