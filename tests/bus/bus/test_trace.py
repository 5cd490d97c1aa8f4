"""Events of single connections: to those who subscribed, for as long as they are there."""

from __future__ import annotations

import json
import re
import select
import signal
import subprocess
from contextlib import ExitStack

import pytest
from dbus_next import Message, MessageType

from support.daemon import load, pins
from support.daemon.bus import private_bus
from support.daemon.client import INTERFACE, Client, message, plain
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.waiting import eventually

KEYS = {"time", "event", "reason", "client", "server", "netns", "dropped"}
ADDRESS = re.compile(r"127\.0\.0\.1:\d+")
GONE_SUBSCRIBERS = 30
OF_A_CONNECTION = ("active_established", "accelerated", "closed")


def tracing(host: Host) -> bool:
    return bool(pins.settings(host.root).trace)


def await_tracing(host: Host, on: bool) -> None:
    eventually(lambda: tracing(host) == on, f"tracing is {'on' if on else 'off'}")


def is_accelerated(signal: Message) -> bool:
    return signal.member == "Event" and bool(plain(signal.body[0])["event"] == "accelerated")


def is_closed(signal: Message) -> bool:
    return signal.member == "Event" and bool(plain(signal.body[0])["event"] == "closed")


def await_line(host: Host, process: subprocess.Popen[str]) -> None:
    """Returns when `sockredirctl trace` has printed a line; makes connections until it does."""
    traffic = host.actor()
    assert process.stdout is not None
    output = process.stdout

    def heard() -> bool:
        traffic.do(load.echo_once, 1, 64)
        return bool(select.select([output], [], [], 0)[0])

    eventually(heard, "trace shows an event")
    output.readline()


def test_subscriber_hears_of_a_connection(host: Host, enabled: Client) -> None:
    assert not tracing(host)
    enabled.call("Subscribe")
    assert tracing(host)
    port = host.actor().do(load.echo_once, 10, 64)
    last = enabled.await_signal(is_closed)
    assert (last.interface, last.signature) == (INTERFACE, "a{sv}")
    events = [plain(signal.body[0]) for signal in enabled.signals]
    assert [event["event"] for event in events] == list(OF_A_CONNECTION)
    for event in events:
        assert event.keys() >= KEYS
        assert ADDRESS.fullmatch(event["client"])
        assert event["server"] == f"127.0.0.1:{port}"
        assert (event["reason"], event["dropped"]) == ("", 0)
    assert len({event["client"] for event in events}) == 1
    assert events == sorted(events, key=lambda event: event["time"])
    enabled.call("Unsubscribe")
    await_tracing(host, on=False)


def test_only_subscribers_hear(host: Host, enabled: Client) -> None:
    """Events say who talks to whom: a match rule is not enough."""
    listener = host.client()
    listener.match(f"type='signal',interface='{INTERFACE}'")
    enabled.call("Subscribe")
    host.actor().do(load.echo_once, 10, 64)
    enabled.await_signal(is_accelerated)
    # the bus keeps the order: what was for the listener comes before this answer
    listener.get("State")
    assert listener.signals == []


def test_retirement_is_an_event(host: Host, enabled: Client) -> None:
    traffic = host.actor()
    traffic.do(load.start, 1)
    traffic.do(load.advance, 10)
    enabled.call("Subscribe")
    enabled.call("Disable")
    retired = enabled.await_signal(lambda signal: signal.member == "Event")
    event = plain(retired.body[0])
    assert (event["event"], event["reason"]) == ("retired", "disable")
    traffic.do(load.finish)


def test_subscribing_before_enable(host: Host, client: Client) -> None:
    client.call("Subscribe")
    client.call("Enable")
    assert tracing(host)
    host.actor().do(load.echo_once, 10, 64)
    client.await_signal(is_accelerated)


def test_two_subscribers(host: Host, enabled: Client) -> None:
    with Client(host.bus) as other:
        for client in (enabled, other):
            client.call("Subscribe")
        host.actor().do(load.echo_once, 10, 64)
        for client in (enabled, other):
            client.await_signal(is_closed)
        other.call("Unsubscribe")
        assert tracing(host)
        enabled.signals.clear()
        host.actor().do(load.echo_once, 10, 64)
        enabled.await_signal(is_closed)
        assert len(other.signals) == len(OF_A_CONNECTION)
    enabled.call("Unsubscribe")
    await_tracing(host, on=False)


def test_killed_subscribers_are_forgotten(host: Host, enabled: Client) -> None:
    with host.ctl_process("trace") as one, host.ctl_process("trace") as other:
        for process in (one, other):
            await_line(host, process)
        one.kill()
        one.wait()
        await_line(host, other)
        assert tracing(host)
        other.kill()
        other.wait()
        await_tracing(host, on=False)


def test_subscribers_that_leave_at_once_are_forgotten(host: Host, enabled: Client) -> None:
    for _ in range(GONE_SUBSCRIBERS):
        with Client(host.bus) as client:
            client.begin("Subscribe")
    # a later call is answered after those
    assert enabled.call_all(message("Stats"))[0].message_type == MessageType.METHOD_RETURN
    await_tracing(host, on=False)


@pytest.mark.parametrize("as_json", [False, True])
def test_client_shows_events_until_interrupted(host: Host, enabled: Client, as_json: bool) -> None:
    with host.ctl_process("trace", *(["--json"] if as_json else [])) as process:
        await_tracing(host, on=True)
        port = host.actor().do(load.echo_once, 10, 64)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in OF_A_CONNECTION]
        process.send_signal(signal.SIGINT)
        rest, stderr = process.communicate(timeout=20)
    assert (process.returncode, rest, stderr) == (0, "", "")
    for line, name in zip(lines, OF_A_CONNECTION, strict=True):
        if as_json:
            event = json.loads(line)
            assert event.keys() >= KEYS
            assert (event["event"], event["server"]) == (name, f"127.0.0.1:{port}")
        else:
            assert name in line
            assert f"-> 127.0.0.1:{port}" in line
    await_tracing(host, on=False)


def test_client_ends_with_its_reader(host: Host, enabled: Client) -> None:
    """As in `sockredirctl trace | head -1`."""
    with host.ctl_process("trace") as process:
        await_tracing(host, on=True)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        traffic = host.actor()

        def ended() -> bool:
            traffic.do(load.echo_once, 1, 64)
            return process.poll() is not None

        eventually(ended, "trace ends when nobody reads it")
        assert process.stderr.read() == ""
    await_tracing(host, on=False)


def test_client_ends_with_the_daemon(host: Host, daemon: DaemonProcess, enabled: Client) -> None:
    with host.ctl_process("trace") as process:
        await_tracing(host, on=True)
        daemon.kill()
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 3
    assert stderr == "sockredirctl: the daemon went away\n"


def test_client_ends_with_the_bus(host: Host) -> None:
    with ExitStack() as stack:
        with private_bus() as address:
            host.bus = address
            host.start()
            with Client(address) as client:
                client.call("Enable")
            process = stack.enter_context(host.ctl_process("trace"))
            await_tracing(host, on=True)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 3
    assert len(stderr.splitlines()) == 1


def test_tracing_ends_with_a_killed_daemon(
    host: Host, daemon: DaemonProcess, enabled: Client
) -> None:
    enabled.call("Subscribe")
    daemon.kill()
    assert tracing(host)
    host.start()
    assert not tracing(host)
