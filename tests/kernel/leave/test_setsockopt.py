"""setsockopt(2) for what only TCP can: plain results on the first connection."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sockredird.datapath.generation import Generation
from sockredird.kernel import libbpf
from sockredird.loader.header import record
from sockredird.loader.records import CAUSES, LISTENER
from support import processes, textbook
from support.background import Background, retiring
from support.options import (
    OPTIONS,
    TCP_ULP,
    Option,
    before_connect,
    on_listener,
    on_live,
    while_connecting,
)
from support.processes import inside
from support.traffic import (
    Stream,
    check_native,
    connect,
    connection,
    echo,
    listen,
    pattern,
    read_exactly,
)

RETIRE_TIMEOUT_S = 20.0
MOMENTS: dict[str, Callable[[Option], list[Any]]] = {
    "live client": partial(on_live, side="client"),
    "live server": partial(on_live, side="server"),
    "before connect": before_connect,
    "while connecting": while_connecting,
    "on the listener": on_listener,
}
CASES = [
    pytest.param(option, moment, id=f"{name}, {moment}")
    for name, option in OPTIONS.items()
    for moment in MOMENTS
    # sequence numbers of a repaired socket are its own, without a handshake
    if option.inherited or moment.startswith("live")
]


def learned(generation: Generation) -> dict[int, str]:
    """By port."""
    return {
        LISTENER.unpack(key).port: CAUSES[record("learned_entry").unpack(entry).cause]
        for key, entry in generation.learned()
    }


@pytest.mark.parametrize(("option", "moment"), CASES)
def test_plain_results(cgroup: Path, generation: Generation, option: Option, moment: str) -> None:
    plain = processes.run(MOMENTS[moment], option)

    def accelerated() -> list[Any]:
        with retiring(generation):
            seen = MOMENTS[moment](option)
        generation.members.retire(RETIRE_TIMEOUT_S, lambda walked: not walked.leaving)
        return seen

    assert processes.run(accelerated, cgroup=cgroup) == plain
    counters = generation.counters()
    if moment.startswith("live"):
        assert counters["accelerated_connections"] == 1
        assert counters["redirected_messages"] == 10
        assert counters[f"retired_{option.name}"] == 1
    else:
        assert counters["redirected_messages"] == 0
        # an option set while it connects may be seen before the connection is accelerated, or after
        assert counters[f"declined_{option.name}"] + counters[f"retired_{option.name}"] == 1


def test_the_textbook_differs(cgroup: Path, bpffs: Path) -> None:
    """The comparison above does tell a sockhash from TCP."""
    different = set()
    with textbook.attached(bpffs / "textbook-options", cgroup):
        for name, option in OPTIONS.items():
            for side in ("client", "server"):
                plain = processes.run(on_live, option, side)
                if processes.run(on_live, option, side, cgroup=cgroup) != plain:
                    different.add(name)
    assert different == {*OPTIONS}


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("side", ["client", "server"])
@inside()
def test_no_message_is_redirected_after_it(
    cgroup: Path, generation: Generation, option: Option, side: str
) -> None:
    """No walk runs meanwhile, so the hook alone causes what is seen."""
    with connection() as both:
        echo(both, 10)
        option.set(getattr(both, side))
        before = generation.counters()["redirected_messages"]
        assert before == 20
        if option.name == "repair":  # a socket under repair does not send
            return
        both.client.sendall(b"x" * 1000)
        both.server.sendall(b"y" * 1000)
        assert read_exactly(both.server, 1000) == b"x" * 1000
        assert read_exactly(both.client, 1000) == b"y" * 1000
        assert generation.counters()["redirected_messages"] == before
        assert generation.members.retire(RETIRE_TIMEOUT_S, lambda walked: walked.entries == 0)
        if option.name != "rcvlowat":
            check_native(both.client, both.server)
            check_native(both.server, both.client)
        assert generation.counters()[f"retired_{option.name}"] == 1


@inside()
def test_a_connection_without_messages_leaves(cgroup: Path, generation: Generation) -> None:
    with connection() as both:
        both.client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        assert generation.members.retire(RETIRE_TIMEOUT_S, lambda walked: walked.entries == 0)
        echo(both, 10)
        assert generation.counters()["redirected_messages"] == 0


@inside()
def test_unread_data_stays_in_order(cgroup: Path, generation: Generation) -> None:
    """What was redirected before the call is read before what TCP brought after it."""
    data = pattern(0, 100_000)
    with connection() as both:
        both.client.sendall(data[:50_000])
        both.server.sendall(data[:50_000])
        both.server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        both.client.sendall(data[50_000:])
        both.server.sendall(data[50_000:])
        assert not generation.members.retire(0.1, lambda walked: not walked.leaving)
        assert read_exactly(both.server, len(data)) == data
        assert read_exactly(both.client, len(data)) == data
        assert generation.members.retire(RETIRE_TIMEOUT_S, lambda walked: walked.entries == 0)
        check_native(both.client, both.server)
        check_native(both.server, both.client)


@inside()
def test_under_traffic(cgroup: Path, generation: Generation) -> None:
    """Both directions busy while the option is set: no byte is lost, swapped or stuck."""
    size, chunk = 2 << 20, 5_000
    with retiring(generation):
        for number in range(12):
            with connection() as both:
                own, other = both.client, both.server
                if number % 2:
                    own, other = other, own
                threads = [Background(send, source, size, chunk) for source in (own, other)]
                threads.append(Background(Stream().read, other, size))
                stream = Stream()
                stream.read(own, size // 4)
                [*OPTIONS.values()][number % 3].set(own)
                stream.read(own, size - stream.position)
                for thread in threads:
                    thread.join(30)
        counters = generation.counters()
        # a server's option is learned: another listener each time
        assert counters["accelerated_connections"] == 12


def send(sock: socket.socket, size: int, chunk: int) -> None:
    for position in range(0, size, chunk):
        sock.sendall(pattern(position, min(chunk, size - position)))


@pytest.mark.parametrize("ktls", [False, True])
@inside()
def test_no_ulp_on_a_member(cgroup: Path, generation: Generation, ktls: bool) -> None:
    """It fails as without kernel TLS; where there is one, later connections get it."""
    generation.kernel_tls(ktls)
    with listen() as listener:
        both = connect(listener)
        echo(both, 10)
        for end in (both.client, both.server):
            with pytest.raises(OSError) as refusal:
                end.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
            assert refusal.value.errno == errno.ENOENT
        echo(both, 10)
        generation.members.retire(RETIRE_TIMEOUT_S, lambda walked: not walked.leaving)
        echo(both, 10)
        assert generation.counters()["redirected_messages"] == (20 if ktls else 60)
        assert generation.counters()["retired_ulp"] == ktls
        port = listener.getsockname()[1]
        assert learned(generation) == ({port: "ulp"} if ktls else {})
        echo(connect(listener), 10)
        assert generation.counters()["declined_learned"] == ktls


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
@inside()
def test_what_is_learned(cgroup: Path, generation: Generation, option: Option) -> None:
    """A server that sets an option on accepted sockets is learned, one whose client does is not."""
    with listen() as first, listen() as second:
        with retiring(generation):
            option.set(connect(first).client)
            option.set(connect(second).server)
        assert learned(generation) == {second.getsockname()[1]: option.name}
        assert generation.counters()["accelerated_connections"] == 2
        with connect(first).client, connect(second).client:
            pass
        assert generation.counters()["accelerated_connections"] == 3
        assert generation.counters()["declined_learned"] == 1


@inside()
def test_a_client_whose_data_waits_already(cgroup: Path, generation: Generation) -> None:
    """Nothing is learned of its server, whose other clients have nothing to do with it."""
    with listen() as listener:
        both = connect(listener)
        both.server.sendall(b"x" * 10)
        both.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 100)
        assert learned(generation) == {}
        with retiring(generation):
            eventually_left = read_exactly(both.client, 10)
        assert eventually_left == b"x" * 10


@inside()
def test_values_that_ask_for_nothing(cgroup: Path, generation: Generation) -> None:
    with connection() as both:
        for number, value in (
            (socket.SO_RCVLOWAT, 1),
            (socket.SO_RCVLOWAT, 0),
            (socket.SO_OOBINLINE, 0),
            (socket.SO_KEEPALIVE, 1),
        ):
            both.client.setsockopt(socket.SOL_SOCKET, number, value)
        with pytest.raises(OSError):
            both.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, b"\1")
        echo(both, 10)
        assert generation.counters()["redirected_messages"] == 20
        assert learned(generation) == {}


@inside()
def test_other_sockets_and_long_options(cgroup: Path, generation: Generation) -> None:
    """The hook runs for every setsockopt(2) in the cgroup, and the kernel hands it a page."""
    long = bytes(64 << 10)
    for family, kind in (
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_INET6, socket.SOCK_STREAM),
        (socket.AF_UNIX, socket.SOCK_STREAM),
    ):
        with socket.socket(family, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 10
            # the kernel reads as much of it as it knows
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, long)
    assert learned(generation) == {}
    assert libbpf.keys(generation._pins["balances"], LISTENER.size) == []
