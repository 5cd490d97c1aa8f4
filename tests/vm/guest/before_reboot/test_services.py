"""Services for the next boot: two that start before acceleration is restored, and two after it."""

from __future__ import annotations

from pathlib import Path

from shell import sh

PAIRS = {
    "early": (
        6390,
        "DefaultDependencies=no\nAfter=local-fs.target\nBefore=sockredird-restore.service",
        "sysinit.target",
    ),
    "late": (6391, "After=sockredird.service", "multi-user.target"),
}
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


def test_services_are_set_up() -> None:
    Path("/srv/client.py").write_text(CLIENT)
    for name, (port, order, target) in PAIRS.items():
        commands = {
            f"{name}-redis": (f"/usr/bin/redis-server --port {port} --save '' --dir /tmp", ""),
            f"{name}-client": (
                f"/usr/bin/python3 /srv/client.py {port}",
                f"After={name}-redis.service",
            ),
        }
        for unit, (command, more) in commands.items():
            Path(f"/etc/systemd/system/{unit}.service").write_text(
                UNIT.format(order=order, more=more, command=command, target=target)
            )
    sh("systemctl daemon-reload")
    sh("systemctl enable " + " ".join(f"{name}-redis {name}-client" for name in PAIRS))
