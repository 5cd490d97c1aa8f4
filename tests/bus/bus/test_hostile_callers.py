"""Nobody, with the policy that is shipped, sends what no client would; others are served meanwhile.

The bus itself takes seconds to check tens of megabytes of variants, whomever they are for. So what
is held against the daemon is its own processor time, and what others wait where the bus is quick.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.daemon import raw
from support.daemon.actor import Actor
from support.daemon.client import INTERFACE, PROPERTIES, Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.daemon.users import NOBODY, become

RSS_LIMIT = 60 << 20
ANSWER_S = 1.0
ERROR = "org.freedesktop.DBus.Error"
LIMITS_EXCEEDED = f"{ERROR}.LimitsExceeded"
UNKNOWN_METHOD = f"{ERROR}.UnknownMethod"
ELEMENTS = {"av": b"\1y\0\7", "ag": b"\0\0", "an": b"\1\0"}

_raw: list[raw.Raw] = []


def connect(address: str, number: int = 1) -> None:
    """In a child, which belongs to user nobody from here on."""
    become(NOBODY)
    _raw.extend(raw.Raw(address) for _ in range(number))


def send_large(signature: str, size: int) -> list[str]:
    """Sends a large call from each connection. Returns the answers."""
    body = raw.array_of(ELEMENTS[signature], size)
    for connection in _raw:
        connection.send(raw.call("Explain", 2, signature, body))
    return [name for connection in _raw for name in connection.errors(1, 60)]


@pytest.fixture
def nobody(host: Host, daemon: DaemonProcess) -> Iterator[Actor]:
    actor = host.stack.enter_context(Actor())
    actor.do(connect, host.bus)
    yield actor


def waited(client: Client) -> float:
    """How long an answer takes, in seconds."""
    began = time.monotonic()
    client.call("Stats")
    return time.monotonic() - began


@pytest.mark.parametrize("signature", ELEMENTS)
@pytest.mark.parametrize("size", [1_000_000, 33_000_000])
def test_a_large_message(
    daemon: DaemonProcess, client: Client, nobody: Actor, signature: str, size: int
) -> None:
    before = daemon.cpu_seconds
    nobody.begin(send_large, signature, size)
    if size < 2_000_000 or signature == "an":
        assert waited(client) < ANSWER_S
    assert nobody.finish() == [LIMITS_EXCEEDED]
    assert waited(client) < ANSWER_S
    assert daemon.cpu_seconds - before < 1
    assert daemon.resident_bytes < RSS_LIMIT


def test_ten_at_once(host: Host, daemon: DaemonProcess, client: Client) -> None:
    nobody = host.stack.enter_context(Actor())
    nobody.do(connect, host.bus, 10)
    before = daemon.cpu_seconds
    nobody.begin(send_large, "an", 33_000_000)
    waits = [waited(client) for _ in range(20)]
    assert nobody.finish() == [LIMITS_EXCEEDED] * 10
    assert max(waits) < ANSWER_S
    assert daemon.cpu_seconds - before < 2
    assert daemon.resident_bytes < RSS_LIMIT


def send_long_path() -> int:
    """8 MB of header fields, with descriptors: how many answers come to a call behind it."""
    fields: dict[int, str | int] = {1: "/" + "a" * 8_000_000, 6: "org.sockredir", 2: INTERFACE}
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    (connection,) = _raw
    connection.send(raw.build(raw.CALL, 2, fields | {3: "Stats", 9: 3}), fds)
    connection.send(raw.call("Stats", 3))
    for fd in fds:
        os.close(fd)
    return connection.answers(1, 30).count(b"active_connections")


def test_a_long_header(host: Host, daemon: DaemonProcess, client: Client, nobody: Actor) -> None:
    """It has no answer, as no sender can be read from it; its descriptors are closed."""
    client.call("Stats")
    held = len(os.listdir(f"/proc/{daemon.pid}/fd"))  # noqa: PTH208
    assert nobody.do(send_long_path) == 1
    assert len(os.listdir(f"/proc/{daemon.pid}/fd")) == held  # noqa: PTH208
    assert waited(client) < ANSWER_S
    assert "header is malformed, or over 8192 bytes" in daemon.stderr
    assert daemon.resident_bytes < RSS_LIMIT


def send_many(member: str, number: int, flags: int, signature: str = "", body: bytes = b"") -> None:
    (connection,) = _raw
    connection.send(
        b"".join(
            raw.call(member, serial, signature, body, flags=flags)
            for serial in range(2, 2 + number)
        )
    )


def errors(count: int) -> list[str]:
    (connection,) = _raw
    return connection.errors(count, 30)


def test_calls_without_an_answer_yet(client: Client, nobody: Actor) -> None:
    """Check takes seconds: of 100 at once there are 32 under way."""
    nobody.do(send_many, "Check", 100, 0)
    assert nobody.do(errors, 68) == [LIMITS_EXCEEDED] * 68
    assert waited(client) < ANSWER_S


@pytest.mark.parametrize("member", ["Stats", "Enable", "Nonsense"])
def test_a_flood_of_calls_that_want_no_answer(
    daemon: DaemonProcess, client: Client, nobody: Actor, member: str
) -> None:
    nobody.begin(send_many, member, 20_000, raw.NO_REPLY)
    waits = [waited(client) for _ in range(5)]
    nobody.finish()
    waits.append(waited(client))
    assert max(waits) < 5 * ANSWER_S  # the bus hands on what came before
    assert waited(client) < ANSWER_S
    assert daemon.resident_bytes < RSS_LIMIT
    assert daemon.stderr.count(" WARNING ") <= 1
    assert " ERROR " not in daemon.stderr


def send_many_bodies(size: int) -> list[str]:
    """For EnableWith: a key whose value is an array of variants."""
    entry = b"\4\0\0\0unit\0" + b"\2av\0"
    entry += bytes(-len(entry) % 4) + raw.array_of(b"\1y\0\7", size)
    body = len(entry).to_bytes(4, "little") + bytes(4) + entry
    (connection,) = _raw
    for serial in range(2, 102):
        connection.send(raw.call("EnableWith", serial, "a{sv}", body))
    return connection.errors(100, 60)


def test_nothing_is_unmarshalled_for_who_may_not_manage(
    daemon: DaemonProcess, client: Client, nobody: Actor
) -> None:
    """100 bodies of 60 KB would take dbus-next 5 s."""
    client.call("Stats")
    before = daemon.cpu_seconds
    nobody.begin(send_many_bodies, 60_000)
    waits = [waited(client) for _ in range(20)]
    assert set(nobody.finish()) <= {LIMITS_EXCEEDED, "org.sockredir.Error.AccessDenied"}
    assert max(waits) < ANSWER_S
    assert daemon.cpu_seconds - before < 1


def send_malformed() -> list[str]:
    """Calls that the bus finds nothing wrong with, and we do; the errors."""
    (connection,) = _raw
    text = b"\1\0\0\0a\0"
    two = text + bytes(2) + text
    wrong = [raw.call("Stats", 2 + n, "y" * n, bytes(n)) for n in range(1, 251)]
    wrong += [raw.call(member, 300, "s", text) for member in ("Stats", "Get", "No_such")]
    wrong += [
        raw.call("Get", 301, "ss", two, interface=PROPERTIES),
        raw.call("GetAll", 302, "s", text, interface=PROPERTIES),
        raw.call("Ping", 303, "s", text, interface="org.freedesktop.DBus.Peer"),
        raw.call("Stats", 304, fds=0, interface="org.freedesktop.DBus.Introspectable"),
    ]
    found: list[str] = []
    for message in wrong:
        connection.send(message)
        found += connection.errors(1, 10)
    assert len(found) == len(wrong)
    return found


def test_malformed_calls_leave_one_line(
    daemon: DaemonProcess, client: Client, nobody: Actor
) -> None:
    before = daemon.stderr.count("\n")
    names = set(nobody.do(send_malformed))
    assert {UNKNOWN_METHOD} < names <= {UNKNOWN_METHOD, f"{ERROR}.UnknownInterface"}
    client.call("Stats")
    assert daemon.stderr.count("\n") - before == 1, daemon.stderr
    assert "Traceback" not in daemon.stderr


def test_a_pipe_of_another(host: Host, enabled: Client, nobody: Actor) -> None:
    """The descriptors of a message that is not read do not go to the next one."""
    nobody.begin(send_long_path)
    for _ in range(5):
        done = host.ctl("list", "--limit", "0", "--json")
        assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert nobody.finish() == 1


def test_the_machine_id(client: Client) -> None:
    for _ in range(2):
        found = client.call("GetMachineId", interface="org.freedesktop.DBus.Peer")
        assert found == Path("/etc/machine-id").read_text().strip()
