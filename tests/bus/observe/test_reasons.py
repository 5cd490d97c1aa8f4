"""Each cause has one name, in stats, trace and explain."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from dbus_next import Variant

from sockredird.datapath.causes import SENTENCES
from sockredird.loader.records import COUNTERS
from support import cgroups, kernel_echo, namespaces, textbook, topology
from support.daemon import pins
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.trace import Trace
from support.options import OPTIONS
from support.topology import Family
from support.traffic import Connection, connect, dial, listen

IPPROTO_MPTCP = 262
TCP_REPAIR = 19
REASONS = {name for name in COUNTERS if name.startswith(("declined_", "retired_"))}
# takes a kernel module: tests/vm/guest/typed/test_ulp.py
IN_A_VM = {
    "declined_ulp",
    "retired_ulp",
    "retired_splice",
    "retired_waitall",
    "retired_trunc",
    "retired_oob",
    "retired_woken",
    "retired_fionread",
}

Test = TypeVar("Test", bound=Callable[..., None])
_produced: set[str] = set()


def produces(*counters: str) -> Callable[[Test], Test]:
    """Marks a test that shows these reasons; see test_all_reasons_are_here()."""
    _produced.update(counters)
    return lambda test: test


# kept open in the actor until the test has asked about them
_open: list[Any] = []


def keep(*sockets: Any) -> str:
    _open.extend(sockets)
    host, port = sockets[0].getsockname()[:2]
    return f"{host}:{port} " + "{}:{}".format(*sockets[0].getpeername()[:2])


def pair() -> Connection:
    with listen() as listener:
        return connect(listener)


def usual() -> str:
    both = pair()
    return keep(both.client, both.server)


def early_data() -> str:
    with listen() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
        client = dial(listener)
        client.sendall(b"x")
        return keep(client, listener.accept()[0])


def optioned(name: str) -> str:
    """An option that was set before connect()."""
    with listen() as listener:
        client = socket.socket()
        OPTIONS[name].set(client)
        client.connect(listener.getsockname())
        return keep(client, listener.accept()[0])


def learned() -> str:
    with listen() as listener:
        OPTIONS["oobinline"].set(connect(listener).server)
        both = connect(listener)
        return keep(both.client, both.server)


def peer_outside(other: str) -> str:
    with listen() as listener:
        client = dial(listener) if not other else dial_from(other, listener)
        return keep(client, listener.accept()[0])


def dial_from(cgroup: str, listener: socket.socket) -> socket.socket:
    """A socket belongs to the cgroup its process was in when it was made."""
    mine = Path("/proc/self/cgroup").read_text().split("0::")[1].split("\n")[0]
    cgroups.join(Path(cgroup))
    client = dial(listener)
    cgroups.join(Path(cgroup).parents[0] / mine.strip("/"))
    return client


def mptcp() -> str:
    with listen() as listener:
        client = dial(listener, protocol=IPPROTO_MPTCP)
        return keep(client, listener.accept()[0])


def kernel_socket() -> str:
    with listen(protocol=IPPROTO_MPTCP) as listener:
        client = dial(listener)
        return keep(client, listener.accept()[0])


def repair() -> str:
    """The accepted socket inherits it; a listening one cannot be given it any more."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    listener.listen()
    client = socket.socket()
    client.settimeout(5)
    client.connect(listener.getsockname())
    return keep(client, listener)


def no_memory() -> str:
    """The memory of a socket's options is used up: no storage for our state."""
    namespaces.enter_network()
    with listen() as listener:
        namespaces.sysctl("net.core.optmem_max", "1")
        client = dial(listener)
        return keep(client, listener.accept()[0])


def mismatch() -> str:
    """NAT between the ends, on a connection whose tuple a listener has answered before."""
    namespaces.enter_network()
    with listen() as named, listen() as real:
        first, second = named.getsockname()[1], real.getsockname()[1]
        probe = dial(named)
        source = probe.getsockname()[1]
        _syn(source + 1, first)
        redirect = ["-p", "tcp", "--dport", str(first), "-j", "REDIRECT", "--to-ports", str(second)]
        subprocess.run(["iptables", "-t", "nat", "-A", "OUTPUT", *redirect], check=True)
        client = dial(named, source_port=source + 1)
        return keep(client, real.accept()[0])


def _syn(source: int, destination: int) -> None:
    """A SYN without a socket behind it: answered, and then reset."""
    loopback = socket.inet_aton("127.0.0.1")
    tcp = struct.pack("!HHIIBBHHH", source, destination, 1, 0, 5 << 4, 2, 65535, 0, 0)
    total = sum(struct.unpack("!16H", loopback * 2 + struct.pack("!HH", 6, len(tcp)) + tcp))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    tcp = tcp[:16] + struct.pack("!H", checksum) + tcp[18:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(tcp, ("127.0.0.1", 0))


def undecidable() -> str:
    network = topology.masquerade(Family(4))
    both = network.connect()
    network.client.enter()
    return keep(both.client, both.server)


def map_full() -> str:
    for _ in range(FEW):
        usual()
    return usual()


def set_option(name: str) -> str:
    both = pair()
    OPTIONS[name].set(both.client)
    return keep(both.client, both.server)


def half_closed() -> str:
    both = pair()
    both.client.shutdown(socket.SHUT_WR)
    both.server.sendall(b"x")
    set_option("oobinline")  # which is retired at once, and this one on the way
    return keep(both.client, both.server)


FEW = 4
DECLINES: dict[str, Callable[..., str]] = {
    "early_data": early_data,
    "zerocopy": partial(optioned, "zerocopy"),
    "mptcp": mptcp,
    "kernel_socket": kernel_socket,
    "repair": repair,
    "rcvlowat": partial(optioned, "rcvlowat"),
    "oobinline": partial(optioned, "oobinline"),
    "option": partial(optioned, "option"),
    "learned": learned,
    "no_memory": no_memory,
}
BY_NAT: dict[str, Callable[..., str]] = {"undecidable": undecidable, "mismatch": mismatch}
RETIRES: dict[str, Callable[..., str]] = {
    "half_closed": half_closed,
    **{
        name: partial(set_option, name)
        for name in ("rcvlowat", "zerocopy", "oobinline", "repair", "option")
    },
}
# taken by somebody else from a map: the peer was deleted
THEFTS = {"peer_gone": "peers"}
# What it takes to make these happen is in tests/kernel/carry, and tests/bus/datapath/test_join.py.
ELSEWHERE = {
    *("retired_blocking_reader", "retired_pressure", "declined_pressure"),
    *("retired_never_quiet", "retired_tcp_unread", "retired_idle"),
}


def check(
    kind: str,
    reason: str,
    ends: str,
    actor_pid: int,
    ask: Callable[..., Any],
    trace: Trace,
) -> None:
    # under NAT the two ends do not agree on the addresses
    either = ends.split()
    trace.until(
        lambda events: any(
            e["event"] == kind and e["reason"] == reason and {e["client"], e["server"]} & {*either}
            for e in events
        )
    )
    assert ask("stats")[f"{kind}_{reason}"] >= 1
    # a namespace of the actor's own is entered through its pid
    answers = ask("explain", "--pid", str(actor_pid))
    found = [a for a in answers if a["kind"] == "connection" and a["reason"] == reason]
    assert found, answers
    assert all(a["detail"] for a in found)


@produces(*(f"declined_{reason}" for reason in DECLINES))
@pytest.mark.parametrize("reason", DECLINES)
def test_declines(
    host: Host, enabled: Client, ask: Callable[..., Any], tracing: Callable[..., Trace], reason: str
) -> None:
    actor = host.actor()
    trace = tracing(lambda: actor.do(usual))
    ends = actor.do(DECLINES[reason])
    check("declined", reason, ends, actor.pid, ask, trace)


@produces("declined_map_full")
@pytest.mark.parametrize("host", [{"limits": {"max_connections": FEW}}], indirect=True)
def test_map_full(
    host: Host, enabled: Client, ask: Callable[..., Any], tracing: Callable[..., Trace]
) -> None:
    trace = tracing(lambda: host.actor().do(usual))
    actor = host.actor()
    check("declined", "map_full", actor.do(map_full), actor.pid, ask, trace)


@produces(*(f"declined_{reason}" for reason in BY_NAT))
@pytest.mark.parametrize("reason", BY_NAT)
@pytest.mark.parametrize("host", [{"scope": {"addresses": "any"}}], indirect=True)
def test_declines_by_nat(
    host: Host, enabled: Client, ask: Callable[..., Any], tracing: Callable[..., Trace], reason: str
) -> None:
    actor = host.actor()
    trace = tracing(lambda: actor.do(usual))
    check("declined", reason, actor.do(BY_NAT[reason]), actor.pid, ask, trace)


@produces("declined_peer_outside")
def test_peer_outside(
    host: Host,
    enabled: Client,
    other_cgroup: Path,
    ask: Callable[..., Any],
    tracing: Callable[..., Trace],
) -> None:
    actor = host.actor()
    trace = tracing(lambda: actor.do(usual))
    ends = actor.do(peer_outside, str(other_cgroup))
    check("declined", "peer_outside", ends, actor.pid, ask, trace)


@produces(*(f"retired_{reason}" for reason in RETIRES))
@pytest.mark.parametrize("reason", RETIRES)
def test_retirements(
    host: Host, enabled: Client, ask: Callable[..., Any], tracing: Callable[..., Trace], reason: str
) -> None:
    actor = host.actor()
    trace = tracing(lambda: actor.do(usual))
    ends = actor.do(RETIRES[reason])
    check("retired", reason, ends, actor.pid, ask, trace)


@produces("declined_other_sockmap")
def test_declined_for_another_sockmap(
    host: Host, client: Client, bpffs: Path, ask: Callable[..., Any], tracing: Callable[..., Trace]
) -> None:
    """Theirs first: they have the sockets. Shown as a problem, until Enable is called again."""
    actor = host.actor()
    with textbook.attached(bpffs / "textbook", host.cgroup):
        client.call("Enable")
        trace = tracing(lambda: actor.do(usual))
        check("declined", "other_sockmap", actor.do(usual), actor.pid, ask, trace)
        assert "sockmap" in client.get("Problem")
        client.call("Enable")
        assert client.get("Problem") == ""


@produces("retired_other_sockmap")
def test_retired_for_another_sockmap(
    host: Host, enabled: Client, bpffs: Path, ask: Callable[..., Any], tracing: Callable[..., Trace]
) -> None:
    actor = host.actor()
    trace = tracing(lambda: actor.do(usual))
    with kernel_echo.attached(bpffs / "kernel-echo"):
        ends = actor.do(echoed_by_the_kernel, bpffs / "kernel-echo")
        check("retired", "other_sockmap", ends, actor.pid, ask, trace)


def echoed_by_the_kernel(directory: Path) -> str:
    both = pair()
    kernel_echo.take(directory, both.server)
    both.client.sendall(b"x")
    assert both.client.recv(1) == b"x"
    return keep(both.client, both.server)


@produces(*(f"retired_{reason}" for reason in THEFTS))
@pytest.mark.parametrize("reason", THEFTS)
def test_taken_by_somebody_else(
    host: Host, enabled: Client, ask: Callable[..., Any], tracing: Callable[..., Trace], reason: str
) -> None:
    actor = host.actor()
    trace = tracing(lambda: actor.do(usual))
    ends = actor.do(usual)
    with pins.opened(host.root) as generation:
        empty(generation, THEFTS[reason])
    actor.do(say_something)
    check("retired", reason, ends, actor.pid, ask, trace)


def say_something() -> None:
    _open[-2].sendall(b"x")


def empty(generation: Any, name: str) -> None:
    """Deletes what the newest connection has in a map: its handshake, or its server end."""
    path = generation.directory / name
    dump = subprocess.run(
        ["bpftool", "-j", "map", "dump", "pinned", str(path)], capture_output=True, check=False
    ).stdout
    keys = [" ".join(entry["key"]) for entry in json.loads(dump)]
    for key in keys:
        side = bytes(int(byte, 16) for byte in key.split())[8:9]
        if side in (b"", b"\1"):
            subprocess.run(
                ["bpftool", "map", "delete", "pinned", str(path), "key", *key.split()], check=False
            )


@produces("retired_disable")
def test_disable(
    host: Host, enabled: Client, ask: Callable[..., Any], tracing: Callable[..., Trace]
) -> None:
    actor = host.actor()
    trace = tracing(lambda: actor.do(usual))
    local, remote = actor.do(usual).split()
    enabled.call("Disable")
    event = trace.await_event("retired", client=local)
    assert event["reason"] == "disable"
    assert ask("stats")["retired_disable"] >= 1
    (answer,) = ask("explain", local, remote)
    assert answer["reason"] == "disable"


def test_all_reasons_are_here() -> None:
    assert _produced | IN_A_VM | ELSEWHERE == REASONS
    assert not _produced & IN_A_VM
    assert {name.partition("_")[2] for name in REASONS} <= SENTENCES.keys()


def test_reasons_of_explain_alone(
    host: Host, enabled: Client, other_cgroup: Path, ask: Callable[..., Any]
) -> None:
    """Reasons of connections that the datapath never saw, or did accelerate."""
    actor = host.actor()
    local, remote = actor.do(usual).split()
    (answer,) = ask("explain", local, remote)
    assert (answer["state"], answer["reason"]) == ("accelerated", "")
    assert (answer["client"], answer["server"], answer["client_sent_bytes"]) == (local, remote, 0)

    elsewhere = host.actor(other_cgroup)
    (answer,) = ask("explain", *elsewhere.do(usual).split())
    assert (answer["state"], answer["reason"]) == ("tcp", "cgroup")

    enabled.call("Disable")
    local, remote = actor.do(usual).split()
    port = actor.do(listening)
    (answer,) = ask("explain", "--port", str(port))
    assert (answer["kind"], answer["reason"]) == ("listener", "disable")
    enabled.call("Enable")
    (answer,) = ask("explain", remote, local)
    assert (answer["state"], answer["reason"]) == ("tcp", "before_enable")
    (answer,) = ask("explain", "--port", str(port))
    assert (answer["state"], answer["reason"]) == ("in_scope", "")

    enabled.call("EnableWith", "a{sv}", {"only_ports": Variant("au", [1])})
    (answer,) = ask("explain", "--port", str(port))
    assert (answer["state"], answer["reason"]) == ("out_of_scope", "port")


def listening() -> int:
    _open.append(listen())
    port: int = _open[-1].getsockname()[1]
    return port
