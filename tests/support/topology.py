"""Networks of namespaces on one host, each with a client, a listener and a way between them.

Built in the calling process, which enters a namespace of its own first; the others live as long as
a descriptor of theirs is open here.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from support import namespaces
from support.traffic import Connection, listen, set_nodelay

CLONE_NEWNET = namespaces.CLONE_NEWNET


@dataclass(frozen=True)
class Family:
    """Addresses and names of one IP version; 0 to 9 can be had."""

    version: int

    def address(self, network: int, number: int) -> str:
        if self.version == 4:
            return f"10.77.{network}.{number}"
        return f"fd77:{network}::{number}"

    @property
    def prefix(self) -> int:
        return 24 if self.version == 4 else 64

    @property
    def loopback(self) -> str:
        return "127.0.0.1" if self.version == 4 else "::1"

    @property
    def iptables(self) -> str:
        return "iptables" if self.version == 4 else "ip6tables"


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class Namespace:
    """A network namespace with lo up."""

    def __init__(self) -> None:
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        namespaces.enter_network()
        self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _enter(before)
        os.close(before)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def enter(self) -> None:
        """The calling thread stays there."""
        _enter(self.fd)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What the calling thread makes inside the with block belongs to the namespace."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _enter(self.fd)
        try:
            yield
        finally:
            _enter(before)
            os.close(before)


def _enter(fd: int) -> None:
    if namespaces.libc.setns(fd, CLONE_NEWNET) != 0:
        raise OSError("setns")


@dataclass
class Network:
    """Where a client and a listener are, what the client dials, and what reaches the listener."""

    client: Namespace
    server: Namespace
    bound: str  # the listener's address
    dialled: str
    port: int  # both: what is listened on, if they do not differ
    dialled_port: int = 0
    source: str = ""  # what the client binds to first

    def listen(self) -> socket.socket:
        with self.server.entered():
            return listen(self.bound, self.port)

    def dial(self, source_port: int = 0) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.dialled else socket.AF_INET
        with self.client.entered():
            client = socket.socket(family)
        if self.source or source_port:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind((self.source, source_port))
        deadline = time.monotonic() + NEIGHBOUR_S
        while True:
            try:
                client.connect((self.dialled, self.dialled_port or self.port))
                return client
            except OSError as error:
                if error.errno not in NOT_YET or time.monotonic() > deadline:
                    raise

    def connect(self) -> Connection:
        with self.listen() as listener:
            client = self.dial()
            server, _ = listener.accept()
        for end in (client, server):
            set_nodelay(end)
        return Connection(client, server)


PORT, DIALLED_PORT = 8080, 80
NEIGHBOUR_S = 20.0  # until the other end of a new link answers, on a busy machine
# IPv6 has no route until a workqueue has seen that the link is up (addrconf_notify())
NOT_YET = (errno.EHOSTUNREACH, errno.ENETUNREACH)


def _configure(namespace: Namespace, device: str, *addresses: str) -> None:
    with namespace.entered():
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            run("ip", "address", "add", address, "dev", device, *nodad)
        run("ip", "link", "set", device, "up")


def _veth(one: Namespace, name: str, other: Namespace, other_name: str) -> None:
    with one.entered():
        run("ip", "link", "add", name, "type", "veth", "peer", "name", other_name)
        run("ip", "link", "set", other_name, "netns", other.path)


def _forwarding() -> None:
    namespaces.sysctl("net.ipv4.ip_forward", "1")
    namespaces.sysctl("net.ipv6.conf.all.forwarding", "1")


def loopback(family: Family) -> Network:
    here = Namespace()
    return Network(here, here, family.loopback, family.loopback, PORT)


def one_address(family: Family) -> Network:
    """The usual way to meet oneself: by the host's address."""
    here = Namespace()
    own = family.address(1, 1)
    _configure(here, "lo", f"{own}/{family.prefix}")
    return Network(here, here, own, own, PORT)


def two_addresses(family: Family) -> Network:
    here = Namespace()
    first, second = family.address(1, 1), family.address(1, 2)
    _configure(here, "lo", f"{first}/{family.prefix}", f"{second}/{family.prefix}")
    return Network(here, here, first, first, PORT, source=second)


def veth(family: Family) -> Network:
    left, right = Namespace(), Namespace()
    _veth(left, "left", right, "right")
    _configure(left, "left", f"{family.address(1, 1)}/{family.prefix}")
    _configure(right, "right", f"{family.address(1, 2)}/{family.prefix}")
    return Network(left, right, family.address(1, 2), family.address(1, 2), PORT)


def bridge(family: Family) -> Network:
    """Two containers on the bridge of a host."""
    host, left, right = Namespace(), Namespace(), Namespace()
    with host.entered():
        run("ip", "link", "add", "bridge", "type", "bridge")
        run("ip", "link", "set", "bridge", "up")
    for number, namespace in ((1, left), (2, right)):
        _veth(host, f"port{number}", namespace, "eth0")
        with host.entered():
            run("ip", "link", "set", f"port{number}", "master", "bridge", "up")
        _configure(namespace, "eth0", f"{family.address(1, number)}/{family.prefix}")
    return Network(left, right, family.address(1, 2), family.address(1, 2), PORT)


def redirect(family: Family) -> Network:
    """A port of the host itself, redirected to another."""
    network = one_address(family)
    with network.server.entered():
        run(
            *(family.iptables, "-t", "nat", "-A", "OUTPUT", "-p", "tcp"),
            *("--dport", str(DIALLED_PORT), "-j", "REDIRECT", "--to-ports", str(PORT)),
        )
    network.bound = "0.0.0.0" if family.version == 4 else "::"
    network.dialled_port = DIALLED_PORT
    return network


def published_port(family: Family) -> Network:
    """A program on the host connects to a port of the host that leads into a container."""
    network = veth(family)
    own = family.address(9, 1)
    _configure(network.client, "lo", f"{own}/{family.prefix}")
    with network.client.entered():
        run(*_dnat(family, "OUTPUT", own, network.bound))
    with network.server.entered():
        # the client has the address it dials
        run("ip", f"-{family.version}", "route", "add", "default", "via", family.address(1, 1))
    network.dialled, network.dialled_port = own, DIALLED_PORT
    return network


def published_on_loopback() -> Network:
    """As published_port(), of Podman: through 127.0.0.1, from which nothing leaves a host as it is.

    With the rules of netavark, but for their chains and the mark between them.
    """
    family = Family(4)
    network = veth(family)
    with network.client.entered():
        namespaces.sysctl("net.ipv4.conf.all.route_localnet", "1")
        run(*_dnat(family, "OUTPUT", "127.0.0.1", network.bound))
        run(
            *(family.iptables, "-t", "nat", "-A", "POSTROUTING", "-s", "127.0.0.1"),
            *("-d", network.bound, "-j", "MASQUERADE"),
        )
    network.dialled, network.dialled_port = "127.0.0.1", DIALLED_PORT
    return network


def _dnat(family: Family, chain: str, dialled: str, bound: str) -> list[str]:
    to = f"{bound}:{PORT}" if family.version == 4 else f"[{bound}]:{PORT}"
    return [
        *(family.iptables, "-t", "nat", "-A", chain, "-p", "tcp", "-d", dialled),
        *("--dport", str(DIALLED_PORT), "-j", "DNAT", "--to-destination", to),
    ]


def _routed(family: Family) -> tuple[Namespace, Network]:
    """A host that routes between two containers on networks of their own, and these."""
    host, left, right = Namespace(), Namespace(), Namespace()
    for number, namespace in ((1, left), (2, right)):
        _veth(host, f"port{number}", namespace, "eth0")
        _configure(host, f"port{number}", f"{family.address(number, 1)}/{family.prefix}")
        _configure(namespace, "eth0", f"{family.address(number, 2)}/{family.prefix}")
        with namespace.entered():
            version = f"-{family.version}"
            gateway = family.address(number, 1)
            run("ip", version, "route", "add", "default", "via", gateway)
    with host.entered():
        _forwarding()
    return host, Network(left, right, family.address(2, 2), family.address(2, 2), PORT)


def service_address(family: Family) -> Network:
    """A container connects to an address nobody has, which stands for another container."""
    host, network = _routed(family)
    network.dialled, network.dialled_port = family.address(9, 9), DIALLED_PORT
    with host.entered():
        run(*_dnat(family, "PREROUTING", network.dialled, network.bound))
    return network


def two_backends(family: Family) -> tuple[Namespace, list[Network]]:
    """An address that stands for either of two containers; what is dialled is the same.

    The host, on which conntrack remembers who is meant, and a Network for each container.
    """
    host, first = _routed(family)
    other = Namespace()
    _veth(host, "port3", other, "eth0")
    _configure(host, "port3", f"{family.address(3, 1)}/{family.prefix}")
    _configure(other, "eth0", f"{family.address(3, 2)}/{family.prefix}")
    with other.entered():
        run("ip", f"-{family.version}", "route", "add", "default", "via", family.address(3, 1))
    dialled, bound = family.address(9, 9), family.address(3, 2)
    half = ("-m", "statistic", "--mode", "nth", "--every", "2", "--packet", "0")
    with host.entered():
        rule = _dnat(family, "PREROUTING", dialled, first.bound)
        at = rule.index("-j")
        run(*rule[:at], *half, *rule[at:])
        run(*_dnat(family, "PREROUTING", dialled, bound))
    first.dialled, first.dialled_port = dialled, DIALLED_PORT
    second = Network(first.client, other, bound, dialled, PORT, DIALLED_PORT)
    return host, [first, second]


def masquerade(family: Family) -> Network:
    """The listener sees the host's address and port in the place of the client's."""
    host, network = _routed(family)
    with host.entered():
        run(
            *(family.iptables, "-t", "nat", "-A", "POSTROUTING", "-p", "tcp", "-o", "port2"),
            *("-j", "MASQUERADE", "--to-ports", "20000-20999"),
        )
    return network


ALL: dict[str, Callable[[Family], Network]] = {
    "loopback": loopback,
    "one address": one_address,
    "two addresses": two_addresses,
    "veth": veth,
    "bridge": bridge,
    "redirect": redirect,
    "published port": published_port,
    "service address": service_address,
    "masquerade": masquerade,
}
