"""The administrator's first day with the package, as docs/first-day.md shows it.

One story, in which each test begins where the one before it ends. It goes on after the reboot, in
after_reboot/test_first_day.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import compiled
import pytest
import transcript
from shell import sh
from status import accelerated_now, property_of, soon, state
from transcript import typed

pytestmark = pytest.mark.userland

CONFIG = "/etc/sockredird/sockredird.toml"
# Keeps four connections to redis, asks on each ten times a second, and polls for the answer.
APP = """\
import socket, time
connections = [socket.create_connection(("127.0.0.1", 6379)) for _ in range(4)]
while True:
    for connection in connections:
        connection.settimeout(60)
        connection.sendall(b"INCR visits\\r\\n")
        connection.recv(100)
    time.sleep(0.1)
"""
APP_UNIT = """\
[Unit]
Description=Counts its visits in redis
After=redis-server.service
[Service]
ExecStart=/usr/bin/python3 /srv/app.py
Restart=on-failure
[Install]
WantedBy=multi-user.target
"""
REDIS_PORT = 6379


@pytest.fixture(scope="module", autouse=True)
def services() -> Iterator[None]:
    Path("/srv/app.py").write_text(APP)
    Path("/etc/systemd/system/app.service").write_text(APP_UNIT)
    sh("systemctl daemon-reload; systemctl start postgresql")
    sh("systemctl enable --now redis-server app")
    yield
    # until the next boot starts them
    sh("systemctl stop app redis-server postgresql")


def test_install(purged: None) -> None:
    transcript.begin()
    transcript.chapter(
        "Install",
        "A Debian host with PostgreSQL, redis, and app.service, which keeps four connections to "
        "redis. The daemon is started, and changes nothing before somebody asks it to.",
    )
    typed("apt-get install -qq ./sockredird_*.deb")
    compiled.put_back()
    assert "State: disabled" in typed("sockredirctl status")


def test_look_before() -> None:
    transcript.chapter(
        "Look before",
        "How the kernel behaves, and what on this host does not go well with redirected data.",
    )
    assert "fail" not in typed("sockredirctl check")


def joined(listing: str) -> int:
    return len(re.findall(r"redis.*joined", listing))


def test_enable_for_units() -> None:
    transcript.chapter("Enable, for two units", "A name that was not meant is not taken.")
    said = typed("sockredirctl enable --unit app,postgresql", status=1)
    assert re.search(r"postgresql@\d+-main\.service", said)
    assert state() == "disabled"
    said = typed("sockredirctl enable --unit app,redis")
    assert "Accelerated: loopback connections in app.service, redis-server.service" in said
    assert state() == "enabled"
    soon(lambda: accelerated_now() == 4, "the app's connections are joined")
    transcript.chapter(
        "Look",
        "The app had its connections before acceleration was enabled. Within seconds they were "
        "joined.",
    )
    assert "4 accelerated now" in typed("sockredirctl status")
    # on an emulated machine one may be back on TCP for some seconds
    soon(lambda: joined(sh("sockredirctl list")) == 4, "they are on the list")
    assert joined(typed("sockredirctl list")) == 4
    said = typed("sockredirctl list --unit app -o wide")
    assert "app.service,redis-server.service" in said
    said = typed("sockredirctl explain --unit app")
    assert said.count(": accelerated") == 4
    said = typed("sockredirctl explain --port postgresql")
    assert "out of scope" in said


def test_trace() -> None:
    transcript.chapter(
        "Watch",
        "The app is restarted meanwhile. The end of connections that are older than acceleration "
        "is not reported. Ctrl-C ends the trace; here timeout(1) does.",
    )
    said = typed(
        "timeout --preserve-status -s INT 120 sockredirctl trace",
        once=("waiting for", lambda: sh("systemctl restart app")),
    )
    assert said.count(" accelerated ") == 4
    soon(lambda: accelerated_now() == 4, "the app's new connections are accelerated")
    said = typed("sockredirctl stats | grep -E 'connections|redirected'")
    assert re.search(r"^accelerated_connections +8$", said, re.M)


def test_other_users() -> None:
    transcript.chapter(
        "What others may see", "Anybody may ask for the state. Who talks to whom is for root."
    )
    assert "State: enabled" in typed("sockredirctl status", user="visitor")
    typed("sockredirctl list", user="visitor", status=4)


def test_another_scope() -> None:
    transcript.chapter(
        "Another scope",
        "What is in both scopes goes to TCP for a moment, and joins again. Plain `enable` keeps "
        "the options.",
    )
    said = typed("sockredirctl enable --port redis")
    assert "port 6379 only" in said
    soon(lambda: accelerated_now() == 4, "they are accelerated in the new scope")
    typed("sockredirctl explain --port redis")
    said = typed("sockredirctl enable")
    assert "port 6379 only" in said
    said = typed("sockredirctl enable --exclude-unit app")
    soon(lambda: accelerated_now() == 0, "the app is left out")
    said = typed("sockredirctl list --unit app", status=6)
    said = typed("sockredirctl explain --unit app")
    assert said.count(": on TCP") == 4


def test_the_file() -> None:
    transcript.chapter("The configuration", "A mistake is found before it does harm.")
    typed(f"sed -i 's/^.scope.$/&\\nadresses = \"host\"/' {CONFIG}")
    typed("sockredird --check-config", status=78)
    typed("systemctl reload sockredird", status=1)
    typed("sockredirctl reload", status=1)
    assert state() == "enabled"
    typed(f"sed -i 's/^adresses/addresses/' {CONFIG}")
    typed("sockredird --check-config")
    typed("systemctl reload sockredird")
    said = typed("sockredirctl enable --configured")
    assert "connections between addresses of this host" in said
    typed(f"sed -i '/^addresses/d' {CONFIG}; systemctl reload sockredird")
    soon(lambda: accelerated_now() >= 4, "the app is accelerated again")


def test_off() -> None:
    transcript.chapter(
        "Off",
        "Stopping the daemon is not the same as disabling acceleration, and it says so.",
    )
    typed("systemctl disable --now sockredird")
    said = typed("sockredirctl status", status=3)
    assert "acceleration is on without it" in said
    typed("sockredirctl status", user="visitor", status=3)
    typed("sockredirctl disable")
    said = typed("sockredirctl status", status=3)
    assert "acceleration is off" in said
    assert sh("systemctl is-active sockredird || true") == "inactive\n"
    assert not list(Path("/sys/fs/bpf").glob("sockredird/generation-*"))
    assert sh("systemctl is-active app") == "active\n"


def test_on_again() -> None:
    transcript.chapter("On again, and a reboot", "For all of the host, as it is configured.")
    typed("systemctl enable --now sockredird")
    assert state() == "disabled"
    typed("sockredirctl enable --configured")
    assert property_of("Scope")["units"] == []
