"""A user without privileges tries everything at once; bystanders and the daemon go on.

`make attack` gives it a minute, and a minute on plain TCP, and compares what bystanders get.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from support.daemon import attack, bystanders
from support.daemon.actor import Actor
from support.daemon.client import Client
from support.daemon.host import Host
from support.daemon.process import DaemonProcess
from support.daemon.users import DAEMON, become
from support.memory import ALL, MEMORY, memory_cgroup
from support.traffic import free_port
from support.waiting import eventually

SECONDS = float(os.environ.get("SOCKREDIR_ATTACK_S", "0"))  # accelerated, and as many on TCP
ROUNDS, SHORT_S = 6, 12.0
RATIO = 0.8  # of what bystanders get on plain TCP
PLACES = 100  # fewer than the attacker holds connections
MEMORY_BYTES = 64 << 20
RESIDENT_BYTES = 60 << 20
ANSWER_S = 1.0
WATCHDOG_S = 4.0
CONNECTIONS = 2
LINES = 100  # of the log, in a round: those of Enable and Disable, and each kind's 20
TABLES: dict[str, dict[str, Any]] = {
    "scope": {"blocking_readers": "tcp"},
    "limits": {"max_connections": PLACES, "drain_timeout_s": 0.5},
}


class Scene:
    """A daemon, somebody's server with somebody else's clients, and who attacks them."""

    def __init__(self, host: Host, stack: ExitStack) -> None:
        self.scraped = free_port()
        host.overrides |= TABLES | {"metrics": {"listen": f"127.0.0.1:{self.scraped}"}}
        self.host = host
        self.daemon: DaemonProcess = host.start(WATCHDOG_USEC=str(int(WATCHDOG_S * 1e6)))
        self.client: Client = host.client()
        # for answers to another caller, in seconds, by whether there was acceleration
        self.waits: dict[bool, list[float]] = {True: [], False: []}
        self.server, self.asker = host.actor(), host.actor()
        self.server.do(become, DAEMON)
        self.port: int = self.server.do(bystanders.serve)
        inner = host.cgroup / "attacker"
        inner.mkdir()
        stack.callback(inner.rmdir)
        memory = None
        if (MEMORY / ALL).exists():
            memory = stack.enter_context(memory_cgroup(ALL, MEMORY_BYTES))
        elif (inner / "memory.max").exists():
            (inner / "memory.max").write_text(str(MEMORY_BYTES))
        self.attacker = stack.enter_context(Actor())
        self.attacker.do(attack.confine, inner, memory)

    def round(self, seconds: float) -> float:
        """Round trips a second that bystanders get, over connections that are there already."""
        names = self.asker.do(bystanders.meet, self.port, CONNECTIONS)
        self.asker.do(bystanders.talk, 0.2)
        accelerated = self.redirected(names)
        waits = self.waits[bool(accelerated)]
        lines, cpu, began = (
            self.daemon.stderr.count("\n"),
            self.daemon.cpu_seconds,
            time.monotonic(),
        )
        self.attacker.do(attack.start, self.host.bus, self.scraped, self.port)
        self.asker.begin(bystanders.talk, seconds)
        while time.monotonic() - began < seconds:
            asked = time.monotonic()
            self.client.call("Stats")
            waits.append(time.monotonic() - asked)
            time.sleep(0.2)
        rate: float = self.asker.finish()
        redirected = sum(self.redirected(names).values()) - sum(accelerated.values())
        made = self.attacker.do(attack.stop)
        share = (self.daemon.cpu_seconds - cpu) / (time.monotonic() - began)
        print(
            f"{self.client.get('State')}: {rate:.0f} round trips/s, {redirected} redirected;"
            f" the daemon took {share:.1%} of a core, {self.daemon.resident_bytes >> 20} MiB;"
            f" answers in {max(waits) * 1000:.0f} ms at the most"
        )
        assert len(made) == 22, made
        assert all(made.values()), made
        if accelerated:
            assert len(accelerated) == CONNECTIONS
            assert redirected > 0.9 * 2 * rate * seconds
        assert self.daemon.stderr.count("\n") - lines < LINES
        return rate

    def redirected(self, names: list[str]) -> dict[str, int]:
        """Messages of the bystanders' connections that are accelerated, both ways."""
        return {
            one["client"]: one["client_sent_messages"] + one["server_sent_messages"]
            for one in self.client.call("Connections", "u", 0)
            if one["client"] in names
        }

    def check(self) -> None:
        """What has to hold after any number of rounds."""
        assert self.daemon.resident_bytes < RESIDENT_BYTES
        log = self.daemon.stderr
        assert "Traceback" not in log
        assert all(line.isprintable() for line in log.splitlines())
        assert r"\x1b[31mA\x0aB\x07" in log
        pings = self.daemon.messages.count("WATCHDOG=1")
        self.daemon.await_message("WATCHDOG=1", timeout=WATCHDOG_S)
        assert pings
        assert "no ping to the watchdog" not in log

    def learned_ports(self) -> set[int]:
        return {entry["port"] for entry in self.client.call("Learned")}


@pytest.fixture
def scene(host: Host) -> Iterator[Scene]:
    with ExitStack() as stack:
        yield Scene(host, stack)


def check_accelerated(scene: Scene) -> None:
    """What the attack did where there was acceleration, and that it met what it is about."""
    stats = scene.client.call("Stats")
    for name in ("declined_map_full", "paused_window", "retired_rcvlowat"):
        assert stats[name], (name, stats)
    eventually(lambda: scene.port not in scene.learned_ports(), "nothing of the bystander's server")
    assert scene.learned_ports()


def test_a_short_attack(scene: Scene) -> None:
    scene.client.call("Enable")
    scene.round(SHORT_S)
    check_accelerated(scene)
    scene.check()
    eventually(lambda: scene.client.call("Stats")["map_entries"] <= 2 * CONNECTIONS, "room")


def test_what_is_shown(scene: Scene) -> None:
    """No command lets the attacker's name draw on the terminal or add a line."""
    scene.client.call("Enable")
    scene.attacker.do(attack.start, scene.host.bus, scene.scraped, scene.port)
    eventually(lambda: bool(scene.learned_ports()), "something is learned")
    eventually(lambda: scene.attacker.do(attack.made, "idle connections") > 20, "some connections")
    shown = [scene.host.ctl(*words) for words in (["list"], ["learned"], ["status"], ["stats"])]
    shown.append(scene.host.ctl("explain", "--pid", str(scene.attacker.pid)))
    with scene.host.ctl_process("trace") as trace:
        assert trace.stdout is not None
        traced = [trace.stdout.readline() for _ in range(50)]
    scene.attacker.do(attack.stop)
    for done in shown:
        assert done.returncode == 0, done.stderr
    texts = [done.stdout for done in shown] + ["".join(traced)]
    for text in texts:
        assert all(line.isprintable() for line in text.splitlines()), text
    named = [r"\x1b[31mA\x0aB\x07" in text for text in texts]
    assert named == [True, True, False, False, True, True], texts


@pytest.mark.skipif(not SECONDS, reason="takes minutes: make attack")
def test_bystanders_beside_plain_tcp(scene: Scene) -> None:
    ratios = []
    for number in range(ROUNDS):
        rates = {}
        for call in ("Enable", "Disable")[:: 1 if number % 2 else -1]:
            if call == "Enable":
                scene.client.call("Enable")
            else:
                assert scene.host.ctl("disable", "--force").returncode == 0
            rates[call] = scene.round(SECONDS / ROUNDS)
            if call == "Enable":
                check_accelerated(scene)
        ratios.append(rates["Enable"] / rates["Disable"])
    scene.check()
    print("accelerated / plain TCP:", " ".join(f"{ratio:.2f}" for ratio in ratios))
    assert statistics.median(ratios) >= RATIO
    # on a busy machine everybody waits, without acceleration, too
    assert max(scene.waits[True]) < max(ANSWER_S, 2 * max(scene.waits[False]))
