"""Which entries make room for others, when any user can make some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sockredird.datapath.learned import MOST, ROOM, Learned
from sockredird.kernel.addresses import netns_cookie
from sockredird.loader.header import record
from sockredird.loader.records import CAUSES, listener_key

ADMINISTRATOR, NEIGHBOUR = 33, 1000


class Datapath:
    """In the place of a generation: its map of what was learned."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}

    def learned(self) -> Any:
        return list(self.entries.items())

    def remove_learned(self, *keys: bytes) -> None:
        for key in keys:
            del self.entries[key]

    def add_learned(self, key: bytes, entry: bytes) -> None:
        self.entries[key] = entry

    def learn(self, port: int, uid: int, time: int, user: int = 0) -> None:
        self.entries[listener_key(netns_cookie(), port, user)] = record("learned_entry").pack(
            time=time * 10**6, cause=CAUSES.index("splice"), uid=uid
        )


def test_the_user_with_the_most_entries_loses_some(tmp_path: Path) -> None:
    datapath: Any = Datapath()
    for port in range(1, 100):
        datapath.learn(port, ADMINISTRATOR, port)
    for port in range(1000, 1000 + MOST - 99):
        datapath.learn(port, NEIGHBOUR, port)
    learned = Learned(tmp_path / "learned.json")
    learned.sync(datapath)
    left = learned.entries()
    assert len(left) == len(datapath.entries) == ROOM
    assert [entry.port for entry in left if entry.uid == ADMINISTRATOR] == list(range(1, 100))
    assert min(entry.port for entry in left if entry.uid == NEIGHBOUR) == 1000 + MOST - ROOM
    datapath.learn(7, NEIGHBOUR, MOST * 2, user=NEIGHBOUR + 1)
    learned.sync(datapath)
    assert learned.about_clients(netns_cookie(), 7) is not None
    assert learned.about(netns_cookie(), 7) is not None


def test_entries_of_clients_are_kept_and_named(tmp_path: Path) -> None:
    datapath: Any = Datapath()
    datapath.learn(8080, NEIGHBOUR, 1, user=NEIGHBOUR + 1)
    datapath.learn(8080, ADMINISTRATOR, 1)
    Learned(tmp_path / "learned.json").sync(datapath)
    again = Learned(tmp_path / "learned.json")
    again.load()
    every, clients = again.shown()
    assert (every["id"], "client_uid" in every) == ("host:8080", False)
    assert (clients["id"], clients["client_uid"]) == ("host:8080/1000", NEIGHBOUR)
    other: Any = Datapath()
    again.add_to(other, passing=True)
    assert other.entries.keys() == datapath.entries.keys()
    again.forget("host:8080/1000", [datapath])
    assert [entry["id"] for entry in again.shown()] == ["host:8080"]
