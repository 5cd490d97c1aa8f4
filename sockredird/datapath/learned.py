"""Listeners whose connections are left alone: what the datapath learned, kept across boots.

The datapath's map `learned` decides, and is read again whenever it says that it has changed. The
file below [paths] state is what a new generation begins with. A network namespace is known by its
cookie, which is good for one boot: only listeners of the daemon's own namespace outlive that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sockredird.datapath.generation import Generation
from sockredird.errors import InvalidConfig, LoadFailed
from sockredird.kernel import files
from sockredird.kernel.addresses import netns_cookie
from sockredird.kernel.cgroup import Names
from sockredird.loader.records import LESSON, LESSON_KINDS, LESSONS, LISTENER, PASSING_LESSONS, text

log = logging.getLogger(__name__)

HOST = "host"  # the daemon's own network namespace
ROOM_FOR_OTHERS = LESSONS * 3 // 4
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

WORDS = {
    "ulp": "asked for TCP_ULP, such as kTLS",
    "rcvlowat": "set SO_RCVLOWAT",
    "zerocopy": "set SO_ZEROCOPY",
    "oobinline": "set SO_OOBINLINE",
    "repair": "set TCP_REPAIR",
    "option": "set SO_TIMESTAMP, SO_TIMESTAMPING, SO_PEEK_OFF or TCP_INQ",
    "splice": "used splice(2) from the socket",
    "waitall": "received with MSG_WAITALL",
    "trunc": "received with MSG_TRUNC",
    "oob": "used MSG_OOB",
    "woken": "had a blocking recv(2) woken without data",
    "fionread": "asked FIONREAD, which does not count redirected data on this kernel",
    "spills": "its connections keep filling their window: one-way bulk",
    "short connections": "its connections end after so few messages that pairing costs more",
    "early data": "its connections carry data before they can be paired (TCP_DEFER_ACCEPT)",
}


@dataclass(frozen=True)
class Lesson:
    netns: int  # cookie
    port: int
    why: str
    since: int  # microseconds since the epoch
    pid: int  # 0: no program's doing
    comm: str
    cgroup: str  # of the listener, as in /proc/PID/cgroup; empty if not known

    @property
    def passing(self) -> bool:
        """For as long as samples say so, and not for good."""
        return self.why in PASSING_LESSONS

    def sentence(self) -> str:
        """Who did what."""
        return f"{self.comm} (pid {self.pid}) {WORDS[self.why]}" if self.pid else WORDS[self.why]


Key = tuple[int, int]  # netns, port


class Learned:
    """Not safe to use from two threads at once; keeps what cannot be written in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot = _BOOT_ID.read_text().strip()
        self._host = netns_cookie()
        self._lessons: dict[Key, Lesson] = {}

    def load(self) -> None:
        """What was kept; a damaged entry is left out, and no reason not to start."""
        kept = files.read(self._path)
        this_boot, host = kept.get("boot") == self._boot, kept.get("host")
        entries = kept.get("lessons")
        for entry in entries[:LESSONS] if isinstance(entries, list) else []:
            lesson = _checked(entry)
            if lesson is None:
                log.warning("%s: %r is ignored", self._path, entry)
            elif this_boot:
                self._lessons[lesson.netns, lesson.port] = lesson
            elif lesson.netns == host:
                self._lessons[self._host, lesson.port] = replace(lesson, netns=self._host)

    def lessons(self) -> list[Lesson]:
        return sorted(self._lessons.values(), key=lambda lesson: (lesson.netns, lesson.port))

    def about(self, netns: int, port: int) -> Lesson | None:
        return self._lessons.get((netns, port))

    def shown(self) -> list[dict[str, Any]]:
        """As Learned() answers."""
        return [
            {"id": self.id_of(lesson), **asdict(lesson), "detail": WORDS[lesson.why]}
            for lesson in self.lessons()
        ]

    def id_of(self, lesson: Lesson) -> str:
        """What forget() takes: 'host:8080', or the namespace's cookie for host."""
        return f"{HOST if lesson.netns == self._host else lesson.netns}:{lesson.port}"

    # -- the datapath ------------------------------------------------------------------------

    def teach(self, generation: Generation, *, passing: bool) -> None:
        """Tells a generation that sees no connection yet what those before it learned."""
        for listener, _ in list(generation.lessons()):  # of its trial
            generation.unteach(listener)
        for lesson in self._lessons.values():
            if passing or not lesson.passing:
                generation.teach(*_packed(lesson))

    def sync(self, generation: Generation) -> None:
        """Takes over what the live generation has learned since, and given up."""
        names = Names()
        found: dict[Key, Lesson] = {}
        listed = list(generation.lessons())
        for raw_key, raw in listed:
            lesson = _unpacked(raw_key, raw, names)
            key = lesson.netns, lesson.port
            known = self._lessons.get(key)
            if known is not None and known.why == lesson.why:
                found[key] = known  # its time and cgroup are from when it was learned
                continue
            found[key] = lesson
            log.info(
                "connections to %s stay on TCP from now on: %s",
                *(self.id_of(lesson), lesson.sentence()),
            )
        gone = self._lessons.keys() - found.keys()
        for key in gone:
            log.info("connections to %s are accelerated again", self.id_of(self._lessons[key]))
        if found != self._lessons:
            self._lessons = found
            self._make_room(generation)
            self._keep()
        # last: one made for a listener that is given up this moment is known, and closed, next time
        for key in gone:
            generation.close_shortcut(LISTENER.pack(*key))
        for raw_key, raw in listed:
            if LISTENER.unpack(raw_key) in self._lessons:
                generation.make_shortcut(raw_key, raw)

    def take_over(self, generation: Generation, live: Generation | None) -> None:
        """What a generation about to go has learned and the live one has not."""
        names = Names()
        missing = {}
        for raw_key, raw in generation.lessons():
            lesson = _unpacked(raw_key, raw, names)
            # what passes the live one may have given up meanwhile
            if (lesson.netns, lesson.port) not in self._lessons and not lesson.passing:
                missing[lesson.netns, lesson.port] = lesson
                if live is not None:
                    live.teach(raw_key, raw)
        if missing:
            self._lessons |= missing
            self._keep()

    def forget(self, identity: str, generations: Iterable[Generation]) -> None:
        """An empty `identity` means all. Raises InvalidConfig if there is no such entry."""
        doomed = [x for x in self.lessons() if not identity or self.id_of(x) == identity]
        if identity and not doomed:
            raise InvalidConfig(
                f"nothing is learned of {identity!r}: sockredirctl learned lists the ids there are"
            )
        generations = list(generations)
        for lesson in doomed:
            for generation in generations:
                generation.unteach(LISTENER.pack(lesson.netns, lesson.port))
            del self._lessons[lesson.netns, lesson.port]
        if not self._keep():
            raise LoadFailed(f"forgotten until the next restart only: cannot write {self._path}")

    def _make_room(self, generation: Generation) -> None:
        """Namespaces come and go, and nobody tells: the oldest of others than the host's go."""
        others = sorted((x for x in self.lessons() if x.netns != self._host), key=lambda x: x.since)
        for lesson in others[: max(len(others) - ROOM_FOR_OTHERS, 0)]:
            generation.unteach(LISTENER.pack(lesson.netns, lesson.port))
            del self._lessons[lesson.netns, lesson.port]

    def _keep(self) -> bool:
        lessons = [asdict(lesson) for lesson in self.lessons()]
        try:
            files.write(self._path, {"boot": self._boot, "host": self._host, "lessons": lessons})
        except OSError as error:
            log.warning("what was learned will not survive a restart: %s", error)
            return False
        return True


def has_kernel_tls() -> bool:
    """Whether TCP_ULP "tls" is there; programs without privileges do not get its module loaded."""
    with suppress(OSError):
        return "tls" in Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()
    return False


def _checked(entry: object) -> Lesson | None:
    try:
        lesson = Lesson(**entry)  # type: ignore[arg-type]
        _packed(lesson)
    except Exception:  # whatever was in the file
        return None
    return lesson if lesson.why in WORDS else None


def _packed(lesson: Lesson) -> tuple[bytes, bytes]:
    ago = time.time_ns() - lesson.since * 1000
    began = max(time.monotonic_ns() - ago, 0)
    kind = LESSON_KINDS.index(lesson.why)
    owner = lesson.pid, lesson.comm.encode()[:15]
    # of a cgroup the path is what stays, and `sync` keeps it
    return (
        LISTENER.pack(lesson.netns, lesson.port),
        LESSON.pack(began, began, kind, 0, *owner),
    )


def _unpacked(raw_key: bytes, raw: bytes, names: Names) -> Lesson:
    netns, port = LISTENER.unpack(raw_key)
    began, _sampled, kind, cgroup, pid, comm = LESSON.unpack(raw)
    since = (time.time_ns() - (time.monotonic_ns() - began)) // 1000
    path = names.path(cgroup) if cgroup else ""
    return Lesson(netns, port, LESSON_KINDS[kind], since, pid, text(comm), path)
