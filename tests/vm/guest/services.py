"""Services that start with the host: before_reboot sets them up, and later boots look at them."""

from __future__ import annotations

from pathlib import Path

from shell import sh
from status import redirected_both_ways, soon

# Two that start before acceleration is restored, and two after it; the port of the server of each
PORTS = {"early": 6390, "late": 6391}
ORDER = {
    "early": (
        "DefaultDependencies=no\nAfter=local-fs.target\nBefore=sockredird-restore.service",
        "sysinit.target",
    ),
    "late": ("After=sockredird.service", "multi-user.target"),
}
CONNECTIONS = 4  # of each client
# Keeps four connections to redis, asks on each ten times a second, and polls for the answer.
CLIENT = """\
import socket, sys, time
def connect():
    while True:
        try:
            return socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        except ConnectionRefusedError:
            time.sleep(0.2)
connections = [connect() for _ in range(4)]
for number in range(1 << 30):
    for connection in connections:
        connection.settimeout(60)
        connection.sendall(b"ECHO %010d\\r\\n" % number)
        data = b""
        while len(data) < 17:
            data += connection.recv(100)
        assert data == b"$10\\r\\n%010d\\r\\n" % number
    time.sleep(0.1)
"""
UNIT = """\
[Unit]
{order}
{more}
[Service]
ExecStart={command}
[Install]
WantedBy={target}
"""


def write_unit(name: str, *, command: str, order: str, target: str, more: str = "") -> None:
    Path(f"/etc/systemd/system/{name}.service").write_text(
        UNIT.format(order=order, more=more, command=command, target=target)
    )


def names(pair: str) -> list[str]:
    return [f"{pair}-redis", f"{pair}-client"]


def set_up() -> None:
    """Writes and enables the services of all pairs, without starting them."""
    Path("/srv/client.py").write_text(CLIENT)
    for pair, port in PORTS.items():
        order, target = ORDER[pair]
        server, client = names(pair)
        command = f"/usr/bin/redis-server --port {port} --save '' --dir /tmp"
        write_unit(server, command=command, order=order, target=target)
        command = f"/usr/bin/python3 /srv/client.py {port}"
        after = f"After={server}.service"
        write_unit(client, command=command, order=order, target=target, more=after)
    sh("systemctl daemon-reload")
    sh("systemctl enable " + " ".join(unit for pair in PORTS for unit in names(pair)))


def monotonic(unit: str, what: str) -> int:
    """Microseconds since the boot."""
    return int(sh(f"systemctl show -P {what}Monotonic {unit}"))


def redirecting(port: int) -> list[bool]:
    """Of each connection to the port that redirects in both directions, whether it was joined."""
    return [
        found["joined"] for found in redirected_both_ways() if found["server"].endswith(f":{port}")
    ]


def check_pair(pair: str) -> None:
    """Its connections are accelerated, whether its services or acceleration came first."""
    port = PORTS[pair]
    restored = monotonic("sockredird-restore", "ExecMainExitTimestamp")
    started = monotonic(f"{pair}-client", "ExecMainStartTimestamp")
    assert (started < restored) == (pair == "early")
    soon(lambda: len(redirecting(port)) == CONNECTIONS, f"those of {pair}-client are accelerated")
    if pair == "early":
        assert all(redirecting(port))
    assert sh(f"systemctl is-active {pair}-client") == "active\n"
