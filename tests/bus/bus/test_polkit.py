"""Callers that polkit authorises: what it is asked, what follows from its answer, who waits."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from dbus_next.aio import MessageBus

from bus.bus.test_interface import introspect
from sockredird.bus.authority import CHECKS_PER_UID, Authority, Caller
from sockredird.bus.calls import ask_bus
from sockredird.errors import AccessDenied
from support.daemon import bus, load, visitor
from support.daemon.actor import Actor
from support.daemon.bus import private_bus
from support.daemon.client import NAME, Client
from support.daemon.host import Host
from support.daemon.polkit import ACTION, PERMISSIVE, SHIPPED, Polkit
from support.daemon.users import DAEMON, NOBODY
from support.waiting import eventually

FREE = {"Stats", "Check", "Unsubscribe"}  # to whoever is on the bus
DENIED = "org.sockredir.Error.AccessDenied"
TRIES = 20
# An agent that registers, and is a program of its own until it is told to end.
AGENT = """#!/bin/bash
echo $$ "$@" > {record}
fd=$2
exec {{fd}}>&-
exec sleep 1000
"""


@pytest.fixture(params=["shipped", "permissive"])
def guarded(host: Host, request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host with a daemon, on a bus where polkit may be: by our policy, and by one without."""
    with private_bus({"shipped": SHIPPED, "permissive": PERMISSIVE}[request.param]) as address:
        host.bus = address
        host.start()
        yield host
        host.stack.close()


@pytest.fixture
def polkit(guarded: Host) -> Polkit:
    return guarded.stack.enter_context(Polkit(guarded.bus))


@pytest.fixture
def root(guarded: Host) -> Client:
    return guarded.client()


@pytest.fixture
def caller(guarded: Host) -> Actor:
    """A caller on the bus, as user nobody."""
    actor = guarded.actor()
    actor.do(visitor.connect, guarded.bus)
    return actor


def test_authorised(guarded: Host, polkit: Polkit, root: Client, caller: Actor) -> None:
    caller.begin(visitor.call, "Enable")
    check = polkit.await_check()
    assert (check.action, check.interactive) == (ACTION, False)
    assert polkit.uid_of(check.caller) == NOBODY
    assert root.get("State") == "disabled"
    polkit.answer(check, True)
    assert caller.finish() == ("", "")
    assert root.get("State") == "enabled"


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("challenge", [False, True])
def test_not_authorised(
    guarded: Host,
    polkit: Polkit,
    root: Client,
    caller: Actor,
    interactive: bool,
    challenge: bool,
) -> None:
    caller.begin(visitor.call, "Enable", interactive)
    check = polkit.await_check()
    assert check.interactive == interactive
    polkit.answer(check, False, challenge=challenge)
    name, text = caller.finish()
    assert name == DENIED
    assert ("authentication" in text) == challenge
    assert "sudo" in text
    assert root.get("State") == "disabled"


def test_polkit_fails(guarded: Host, polkit: Polkit, root: Client, caller: Actor) -> None:
    for answer in (polkit.answer_error, polkit.answer_nonsense):
        caller.begin(visitor.call, "Enable")
        answer(polkit.await_check())
        name, text = caller.finish()
        assert (name, "sudo" in text) == (DENIED, True)
    assert root.get("State") == "disabled"


def test_polkit_dies_meanwhile(guarded: Host, root: Client, caller: Actor) -> None:
    with Polkit(guarded.bus) as polkit:
        caller.begin(visitor.call, "Enable", True)
        polkit.await_check()
    name, text = caller.finish()
    assert (name, "sudo" in text) == (DENIED, True)
    assert root.get("State") == "disabled"


def test_no_polkit(guarded: Host, root: Client, caller: Actor) -> None:
    name, text = caller.do(visitor.call, "Enable")
    assert name == DENIED
    assert "only root may do this" in text
    assert "sudo" in text
    assert root.get("State") == "disabled"


def test_root_is_not_asked_about(polkit: Polkit, root: Client) -> None:
    root.call("Enable")
    root.call("Disable")
    polkit.ask_bus("GetId", "")  # a check would have come before this reply
    assert not polkit.signals


def test_every_member_that_shows_or_changes_asks(
    polkit: Polkit, root: Client, caller: Actor
) -> None:
    members = {str(method.get("name")) for method in introspect(root).iterfind("method")}
    assert {"Enable", "Stats"} < members
    for member in sorted(members):
        caller.begin(visitor.call, member)
        if member not in FREE:
            polkit.answer(polkit.await_check(), False)
        assert caller.finish()[0] == ("" if member in FREE else DENIED), member
        assert not polkit.signals


def test_subscriber_that_is_not_root(
    guarded: Host, polkit: Polkit, root: Client, caller: Actor
) -> None:
    root.call("Enable")
    caller.begin(visitor.call, "Subscribe")
    polkit.answer(polkit.await_check(), True)
    assert caller.finish() == ("", "")
    caller.begin(visitor.await_event)
    guarded.actor().do(load.echo_once, 1, 64)
    assert caller.finish() == "active_established"


def test_nobody_waits_for_a_password_but_its_caller(
    guarded: Host, polkit: Polkit, root: Client, caller: Actor
) -> None:
    caller.begin(visitor.call, "Disable", True)
    check = polkit.await_check()
    root.call("Enable")
    other = guarded.actor()
    other.do(visitor.connect, guarded.bus)
    assert other.do(visitor.call, "Stats") == ("", "")
    other.begin(visitor.call, "Connections")
    polkit.answer(polkit.await_check(), True)
    assert other.finish() == ("", "")
    assert root.get("State") == "enabled"
    polkit.answer(check, True)
    assert caller.finish() == ("", "")
    assert root.get("State") == "disabled"


def test_caller_that_leaves(polkit: Polkit, root: Client, caller: Actor) -> None:
    caller.begin(visitor.call, "Enable", True)
    check = polkit.await_check()
    caller.close()
    assert polkit.await_cancellation() == check.number
    polkit.answer(check, True)
    assert root.get("State") == "disabled"


def test_callers_are_not_mixed_up(guarded: Host, polkit: Polkit) -> None:
    """Calls of two users that arrive together, answered in another order: each gets its own."""
    actors = [guarded.actor(), guarded.actor()]
    names = [
        actor.do(visitor.connect, guarded.bus, uid)
        for actor, uid in zip(actors, (NOBODY, DAEMON), strict=True)
    ]
    order = Random(5)
    for _ in range(TRIES):
        for actor in actors:
            actor.begin(visitor.call_all, ["Connections"] * CHECKS_PER_UID)
        checks = [polkit.await_check() for _ in range(2 * CHECKS_PER_UID)]
        assert {check.caller for check in checks} == set(names)
        order.shuffle(checks)
        for check in checks:
            polkit.answer(check, check.caller == names[0])
        allowed, refused = ({name for name, _ in actor.finish()} for actor in actors)
        assert (allowed, refused) == ({""}, {DENIED})


def test_one_user_cannot_take_all_checks(guarded: Host, polkit: Polkit, caller: Actor) -> None:
    caller.begin(visitor.call_all, ["Connections"] * (CHECKS_PER_UID + 1), True)
    checks = [polkit.await_check() for _ in range(CHECKS_PER_UID)]
    other = guarded.actor()
    other.do(visitor.connect, guarded.bus, DAEMON)
    other.begin(visitor.call, "Connections")
    polkit.answer(polkit.await_check(), True)
    assert other.finish() == ("", "")
    for check in checks:
        polkit.answer(check, True)
    *allowed, (name, text) = sorted(caller.finish())
    assert {name for name, _ in allowed} == {""}
    assert (name, str(CHECKS_PER_UID) in text) == (DENIED, True)
    caller.begin(visitor.call, "Connections")
    polkit.answer(polkit.await_check(), True)
    assert caller.finish() == ("", "")


def test_descriptors_of_strangers_are_closed(guarded: Host, root: Client, caller: Actor) -> None:
    daemon = root.ask_bus("GetConnectionUnixProcessID", "s", NAME)
    before = {path.name for path in Path(f"/proc/{daemon}/fd").iterdir()}
    for member, signature, body in (
        ("WriteConnections", "ha{sv}", [0, {}]),
        ("WriteConnections", "ha{sv}", [1, {}]),
        ("WriteConnections", "ha{sv}", [9, {}]),
        ("WriteConnections", "hh", [0, 1]),
        ("WriteConnections", "", []),
        ("Stats", "", []),
        ("Nothing", "h", [0]),
    ):
        caller.do(visitor.call_with_descriptors, member, signature, body)
    assert {path.name for path in Path(f"/proc/{daemon}/fd").iterdir()} == before


def test_bus_goes_away_meanwhile(host: Host) -> None:
    with tempfile.TemporaryDirectory(prefix="srt-bus-") as name:
        host.bus = bus.address(Path(name))
        with bus.running(Path(name), SHIPPED):
            daemon = host.start()
            caller = host.actor()
            caller.do(visitor.connect, host.bus)
            with Polkit(host.bus) as polkit:
                caller.begin(visitor.call, "Enable", True)
                polkit.await_check()
        with bus.running(Path(name), SHIPPED), Client(host.bus) as client:
            eventually(lambda: client.ask_bus("NameHasOwner", "s", NAME), "the daemon is back")
            assert client.get("State") == "disabled"
            client.call("Enable")
            client.call("Disable")
    assert "Traceback" not in daemon.stderr


# -- how long the daemon waits: here in a child, with no time at all -------------------------


def judge(address: str, name: str, interactive: bool, timeout: float) -> str:
    """What Authority says of a caller; empty if it may."""

    async def run() -> str:
        bus = await MessageBus(address).connect()
        try:
            await Authority(bus, timeout).require(Caller(name, interactive))
        except AccessDenied as error:
            return str(error)
        finally:
            await ask_bus(bus, "NameHasOwner", name)  # what was sent before has arrived now
            bus.disconnect()
        return ""

    return asyncio.run(run())


def test_polkit_does_not_answer(guarded: Host, polkit: Polkit, caller: Actor) -> None:
    guardian = guarded.actor()
    name = caller.do(visitor.name)
    guardian.begin(judge, guarded.bus, name, False, 0.0)
    assert polkit.await_cancellation() == polkit.await_check().number
    text = guardian.finish()
    assert "polkit has not answered" in text
    assert "sudo" in text


def test_a_person_may_take_longer(guarded: Host, polkit: Polkit, caller: Actor) -> None:
    guardian = guarded.actor()
    name = caller.do(visitor.name)
    guardian.begin(judge, guarded.bus, name, True, 0.0)
    polkit.answer(polkit.await_check(), True)
    assert guardian.finish() == ""


def test_caller_the_bus_does_not_know(guarded: Host, polkit: Polkit) -> None:
    assert "sudo" in guarded.actor().do(judge, guarded.bus, ":1.4711", True, 0.0)
    assert not polkit.signals


# -- sockredirctl ----------------------------------------------------------------------------


def test_client_asks_for_a_password(guarded: Host, polkit: Polkit, root: Client) -> None:
    user = guarded.actor()
    user.begin(visitor.main, guarded.bus, "/nonexistent", "enable")
    check = polkit.await_check()
    assert not check.interactive
    polkit.answer(check, False, challenge=True)
    check = polkit.await_check()
    assert check.interactive
    polkit.answer(check, True)
    assert user.finish() == 0
    assert root.get("State") == "enabled"


def test_client_is_denied(guarded: Host, polkit: Polkit, root: Client) -> None:
    user = guarded.actor()
    user.begin(visitor.main, guarded.bus, "/nonexistent", "enable")
    polkit.answer(polkit.await_check(), False, challenge=True)
    polkit.answer(polkit.await_check(), False)
    assert user.finish() == 4
    assert root.get("State") == "disabled"


@pytest.mark.parametrize("session", [False, True], ids=["no session", "session"])
def test_client_brings_an_agent(
    guarded: Host, polkit: Polkit, monkeypatch: pytest.MonkeyPatch, session: bool
) -> None:
    """On a terminal pkttyagent runs while the daemon is asked again, and not any longer."""
    with tempfile.TemporaryDirectory(prefix="srt-agent-") as name:
        record = Path(name) / "record"
        record.touch()
        agent = Path(name) / "pkttyagent"
        agent.write_text(AGENT.format(record=record))
        for path in (record, agent, Path(name)):
            path.chmod(0o777)
        monkeypatch.delenv("XDG_SESSION_ID", raising=False)
        if session:
            monkeypatch.setenv("XDG_SESSION_ID", "1")
        user = guarded.actor()
        user.begin(visitor.main_on_terminal, guarded.bus, f"{name}:/usr/bin:/bin", "enable")
        polkit.answer(polkit.await_check(), False, challenge=True)
        check = polkit.await_check()
        pid, *arguments = record.read_text().split()
        assert arguments[0] == "--notify-fd"
        assert arguments[2:] == (["--fallback"] if session else [])
        assert Path("/proc", pid).exists()
        polkit.answer(check, True)
        assert user.finish() == 0
        assert not Path("/proc", pid).exists()
