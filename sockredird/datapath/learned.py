"""Listeners whose connections are left alone: what the datapath learned, kept across boots.

The datapath's map `learned` decides, and is read again whenever it says that it has changed. The
file below [paths] state is what a new generation begins with. A network namespace is known by its
cookie, which is good for one boot: only listeners of the daemon's own namespace outlive that.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sockredird.datapath.causes import SENTENCES, sentence
from sockredird.datapath.generation import Generation
from sockredird.errors import FewLines, InvalidConfig, LoadFailed
from sockredird.kernel import files
from sockredird.kernel.addresses import netns_cookie
from sockredird.kernel.cgroup import Names
from sockredird.loader.header import record
from sockredird.loader.records import (
    CAUSES,
    LEARNED_FOR_GOOD,
    LISTENER,
    UNPROFITABLE,
    listener_key,
    text,
)
from sockredird.loader.shapes import CAPACITIES

log = logging.getLogger(__name__)

HOST = "host"  # the daemon's own network namespace
MOST = CAPACITIES["LEARNED_ENTRIES"]
ROOM = MOST * 3 // 4  # for the entries of all other namespaces, and for all
Key = tuple[int, int, int]  # netns, port, user
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Entry:
    netns: int  # cookie
    port: int
    why: str
    since: int  # microseconds since the epoch
    pid: int  # 0: no program did anything
    comm: str
    cgroup: str  # of the listener, as in /proc/PID/cgroup; empty if not known
    uid: int = 0  # of the listener, or of the clients whose connections alone are left on TCP
    user: int = 0  # uid + 1 of those clients; 0: the connections of all

    @property
    def key(self) -> Key:
        return self.netns, self.port, self.user

    @property
    def passing(self) -> bool:
        """Whether it is learned until connections to it are joined, and not for good."""
        return self.why in UNPROFITABLE

    def sentence(self) -> str:
        """What the cause means, with the program that did something as its subject."""
        return sentence(self.why, who=f"{self.comm} (pid {self.pid})" if self.pid else "a program")


class Learned:
    """The entries; kept in memory where the file cannot be written.

    Not safe to use from two threads at once.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot = _BOOT_ID.read_text().strip()
        self._host = netns_cookie()
        self._entries: dict[Key, Entry] = {}
        self._lines = FewLines(log)

    def load(self) -> None:
        """Reads the file; a damaged entry is left out, with a warning."""
        kept = files.read_or_empty(self._path)
        this_boot, host = kept.get("boot") == self._boot, kept.get("host")
        entries = kept.get("entries")
        for raw in entries[:MOST] if isinstance(entries, list) else []:
            entry = _checked(raw)
            if entry is None:
                log.warning("%s: %r is ignored", self._path, raw)
            elif this_boot:
                self._entries[entry.key] = entry
            elif entry.netns == host:
                entry = replace(entry, netns=self._host)
                self._entries[entry.key] = entry

    def entries(self) -> list[Entry]:
        return sorted(self._entries.values(), key=lambda entry: entry.key)

    def about(self, netns: int, port: int) -> Entry | None:
        """The entry for all connections of a listener."""
        return self._entries.get((netns, port, 0))

    def about_clients(self, netns: int, port: int) -> Entry | None:
        """An entry for those of some user's clients."""
        of_port = (x for x in self.entries() if (x.netns, x.port) == (netns, port) and x.user)
        return next(of_port, None)

    def shown(self) -> list[dict[str, Any]]:
        """The entries as Learned() returns them."""
        return [self._shown(entry) for entry in self.entries()]

    def _shown(self, entry: Entry) -> dict[str, Any]:
        found = {"id": self.id_of(entry), **asdict(entry), "detail": SENTENCES[entry.why]}
        del found["user"], found["uid"]
        return {**found, "client_uid": entry.user - 1} if entry.user else found

    def id_of(self, entry: Entry) -> str:
        """The id that forget() takes: 'host:8080', or the namespace's cookie for host.

        'host:8080/1000' if only connections of that user's clients are left on TCP.
        """
        of_clients = f"/{entry.user - 1}" if entry.user else ""
        return f"{HOST if entry.netns == self._host else entry.netns}:{entry.port}{of_clients}"

    # -- the datapath ------------------------------------------------------------------------

    def add_to(self, generation: Generation, *, passing: bool) -> None:
        """Adds the entries to a generation that sees no connection yet."""
        generation.remove_learned(*(key for key, _ in generation.learned()))  # left by its trial
        for entry in self._entries.values():
            if passing or not entry.passing:
                generation.add_learned(*_packed(entry))

    def sync(self, generation: Generation) -> None:
        """Takes over which listeners the live generation has learned, or given up, since."""
        names = Names()
        found: dict[Key, Entry] = {}
        listed = list(generation.learned())
        for raw_key, raw in listed:
            entry = _unpacked(raw_key, raw, names)
            known = self._entries.get(entry.key)
            if known is not None and known.why == entry.why:
                found[entry.key] = known  # its time and cgroup are from when it was learned
                continue
            found[entry.key] = entry
            self._lines.info(
                "connections to %s stay on TCP from now on: %s",
                *(self.id_of(entry), entry.sentence()),
            )
        gone = self._entries.keys() - found.keys()
        for key in gone:
            self._lines.info(
                "connections to %s are accelerated again", self.id_of(self._entries[key])
            )
        if found != self._entries:
            self._entries = found
            self._make_room(generation)
            self._keep()

    def take_over(self, generation: Generation, live: Generation | None) -> None:
        """Takes over entries that only a generation about to be removed has."""
        names = Names()
        missing = {}
        for raw_key, raw in generation.learned():
            entry = _unpacked(raw_key, raw, names)
            # the live one may have given up an entry that is not for good
            if entry.key not in self._entries and not entry.passing:
                missing[entry.key] = entry
                if live is not None:
                    live.add_learned(raw_key, raw)
        if missing:
            self._entries |= missing
            self._keep()

    def forget(self, identity: str, generations: Iterable[Generation]) -> None:
        """Removes an entry, or all if `identity` is empty.

        Raises InvalidConfig if there is no such entry, LoadFailed if the file cannot be written,
        or OSError.
        """
        doomed = [x for x in self.entries() if not identity or self.id_of(x) == identity]
        if identity and not doomed:
            raise InvalidConfig(
                f"there is no learned listener {identity!r}: sockredirctl learned lists them"
            )
        for generation in generations:
            generation.remove_learned(*(listener_key(*entry.key) for entry in doomed))
        for entry in doomed:
            del self._entries[entry.key]
        if not self._keep():
            raise LoadFailed(
                f"removed until sockredird restarts only: {self._path} cannot be written"
            )

    def _make_room(self, generation: Generation) -> None:
        """Removes the oldest entries of namespaces other than the host's, and of whoever has most.

        Such namespaces come and go, and nothing announces that. Any user can make entries.
        """
        oldest_first = sorted(self.entries(), key=lambda x: x.since)
        others = [x for x in oldest_first if x.netns != self._host]
        doomed = others[: max(len(others) - ROOM, 0)]
        of_user: defaultdict[int, deque[Entry]] = defaultdict(deque)
        going = {entry.key for entry in doomed}
        for entry in oldest_first:
            if entry.key not in going:
                of_user[entry.uid].append(entry)
        for _ in range(len(oldest_first) - len(doomed) - ROOM):
            doomed.append(max(of_user.values(), key=len).popleft())
        generation.remove_learned(*(listener_key(*entry.key) for entry in doomed))
        for entry in doomed:
            del self._entries[entry.key]

    def _keep(self) -> bool:
        entries = [vars(entry) for entry in self.entries()]
        try:
            files.write(self._path, {"boot": self._boot, "host": self._host, "entries": entries})
        except OSError as error:
            log.warning("learned listeners will not survive a restart of sockredird: %s", error)
            return False
        return True


def has_kernel_tls() -> bool:
    """Whether TCP_ULP "tls" is there; a program without privileges cannot load its module."""
    with suppress(OSError):
        return "tls" in Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()
    return False


def _checked(raw: object) -> Entry | None:
    try:
        entry = Entry(**raw)  # type: ignore[arg-type]
        _packed(entry)
    except Exception:  # whatever was in the file
        return None
    return entry if entry.why in (*LEARNED_FOR_GOOD, *UNPROFITABLE) else None


def _packed(entry: Entry) -> tuple[bytes, bytes]:
    ago = time.time_ns() - entry.since * 1000
    began = max(time.monotonic_ns() - ago, 0)
    # the cgroup is known by its path only, which sync() keeps
    return listener_key(*entry.key), record("learned_entry").pack(
        time=began,
        uid=entry.uid,
        cause=CAUSES.index(entry.why),
        owner=record("owner").pack(pid=entry.pid, comm=entry.comm.encode()[:15]),
    )


def _unpacked(raw_key: bytes, raw: bytes, names: Names) -> Entry:
    listener = LISTENER.unpack(raw_key)
    found = record("learned_entry").unpack(raw)
    since = (time.time_ns() - (time.monotonic_ns() - found.time)) // 1000
    path = names.path(found.cgroup) if found.cgroup else ""
    return Entry(
        listener.netns,
        listener.port,
        CAUSES[found.cause],
        since,
        found.owner.pid,
        text(found.owner.comm),
        path,
        found.uid,
        listener.user,
    )
