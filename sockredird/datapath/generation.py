"""One generation of the datapath: a set of programs, maps and links pinned in one directory.

    <bpffs>/generation-<n>/{pair,redirect,guard,walk,...}    programs
                           {peers,sockets,...}     maps
                           members                 iterator link
                           attached-<prog>-<id>    cgroup links: live while they exist (links.py)

The pins are the state. A directory is built as `staging-<n>` and renamed; the programs let
everything pass until `stopped` in the settings is cleared, the last step of creation and, set, the
first of removal; a drained directory is renamed back to `staging-<n>` before its pins go. So a
crash at any point leaves a live generation, one to drain, or a staging directory whose sockhash
is empty.
"""

from __future__ import annotations

import logging
import os
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sockredird.datapath import adoption, contents, links
from sockredird.datapath.adoption import MAPS, MEMBERS
from sockredird.datapath.plan import Plan
from sockredird.errors import AccessDenied, Internal, LoadFailed
from sockredird.kernel import capabilities, files, libbpf
from sockredird.kernel.cgroup import is_cgroup
from sockredird.kernel.libbpf import Fd
from sockredird.loader import compiler
from sockredird.loader.header import record
from sockredird.loader.records import (
    BORDER_REACHED,
    BROKEN,
    CAPACITIES,
    CAUSES,
    COUNTERS,
    DECLINED,
    FLOW,
    LEFT_UNREAD,
    LISTENER,
    PAUSED,
    PLAIN_COUNTERS,
    PROGRAMS,
    RETIRED,
    Flow,
    Settings,
    hash_of,
    listener_key,
)

log = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 0.5
SHOWS_S = 0.004  # more than SHOWS_WITHIN_MS of leave/walk.c
WALK_SHARE = 20  # a walk begins no sooner after the last one than this times what that took
NEARLY_FULL = 7 / 8  # of the sockhash: from there on idle pairs have to leave
ROOM_PAIRS = 1024  # that one walk may begin to take off; CAPACITIES has room for those of many
_ZERO = bytes(4)


@dataclass(frozen=True)
class Walked:
    """What one walk over the sockhash met."""

    entries: int
    connections: int
    leaving: int
    broken: frozenset[tuple[bytes, int]] = frozenset()  # struct flow and side of the end to reset
    unsettled: int = 0  # directions that the next walk has to look at again


class Joinable(Protocol):
    """A connection that is established already, see join.py."""

    @property
    def client(self) -> Any: ...  # struct candidate
    @property
    def server(self) -> Any: ...
    @property
    def key(self) -> dict[str, int]: ...  # struct pair
    def flow(self) -> bytes: ...
    def server_address(self) -> bytes: ...


Trial = Callable[["Generation"], None]


def discard(directory: Path) -> None:
    """Removes a staging directory and its pins."""
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


class Generation:
    """An open generation. All methods block; none is safe to call from two threads at once."""

    def __init__(self, directory: Path, pins: dict[str, Fd], manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest
        self._pins = pins
        self._settings = Settings.unpack(
            libbpf.lookup(pins["settings"], _ZERO, record("settings").size)
        )
        self._settings.listing = self._settings.trial = 0  # a crash may have left them set
        self.walk_seconds = 0.0  # that the last walk took
        self._ports = libbpf.lookup(pins["ports"], _ZERO, record("ports").size)

    # -- creation and adoption ---------------------------------------------------------------

    @classmethod
    def create(
        cls,
        root: Path,
        number: int,
        plan: Plan,
        trial: Trial | None = None,
        prepare: Callable[[Generation], None] = lambda _generation: None,
    ) -> Generation:
        """Compiles, loads and attaches; new connections are accelerated when it returns.

        Before that, `trial` gets it, for tried_in(), and may raise; then `prepare` gets it, before
        it sees the first connection in scope. Raises LoadFailed or UnsupportedKernel, leaving
        nothing behind.
        """
        staging = root / f"staging-{number}"
        directory = root / f"generation-{number}"
        made: Path | None = None  # what is removed on an error
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            staging.mkdir(mode=0o700)
            made = staging
            compiler.compile_and_pin(staging, plan.max_connections)
            contents.fill(staging, plan)
            if trial is not None:
                with closing(cls.adopt(staging)) as candidate:
                    trial(candidate)
            staging.rename(directory)
            made = directory
            generation = cls.adopt(directory)
            prepare(generation)
            generation.attach(plan.cgroups)
            generation._start()  # from here on sockets are put on the sockhash
        except BaseException as error:
            if made is not None:
                discard(made)
            if isinstance(error, OSError):
                raise LoadFailed(f"cannot set up the datapath: {error}") from error
            raise
        return generation

    @classmethod
    @contextmanager
    def unpinned(cls, root: Path, plan: Plan) -> Iterator[Generation]:
        """One that is never live and ends with this process, for tried_in(). Raises as create()."""
        staging = root / "staging-0"  # generations count from 1
        try:
            if staging.exists():  # an earlier one was not removed, for want of descriptors
                discard(staging)
            staging.mkdir(mode=0o700, parents=True)
            try:
                compiler.compile_and_pin(staging, plan.max_connections)
                contents.fill(staging, plan)
                generation = cls.adopt(staging)
            finally:
                discard(staging)
        except OSError as error:
            raise LoadFailed(f"cannot set up the datapath: {error}") from error
        with closing(generation):
            yield generation

    @classmethod
    def adopt(cls, directory: Path) -> Generation:
        """Opens what is pinned in `directory` after checking every object.

        Raises LoadFailed naming the first object that is not what this version creates, or
        AccessDenied; nothing is changed then.
        """
        try:
            return cls(directory, *adoption.open_checked(directory))
        except (LoadFailed, OSError) as error:
            if capabilities.lacking():
                raise AccessDenied(f"cannot check what {directory} holds: {error}") from error
            raise LoadFailed(
                f"what is pinned is not this sockredird's: {error}. Nothing was changed; "
                f"remove {directory}, or point [paths] bpffs elsewhere"
            ) from error

    @contextmanager
    def tried_in(self, cgroup: Path, port: int, window_bytes: int) -> Iterator[None]:
        """Within the with block it works on a private cgroup, for one listening port.

        Afterwards it is as it was made, except for sockets that are still on the sockhash.
        """
        ports = libbpf.lookup(self._pins["ports"], _ZERO, record("ports").size)
        before = self._settings
        libbpf.update(self._pins["ports"], _ZERO, contents.port_bits({port}))
        # only the port of the scope applies: the rest may exclude the place of the trial
        self._settings = Settings(
            stopped=1,
            epoch=before.epoch,
            window_bytes=window_bytes,
            blocking=1,
            recent=before.recent,
            revalidate=before.revalidate,
            memory_bytes=before.memory_bytes,
        )
        try:
            with links.held(self._pins, cgroup):
                self._start()
                yield
        finally:
            self._settings = before
            self._write_settings()
            libbpf.update(self._pins["ports"], _ZERO, ports)
            libbpf.update(self._pins["counters"], _ZERO, bytes(_counters_size()))

    def _start(self) -> None:
        self._settings.stopped = 0
        self._write_settings()

    # -- state -------------------------------------------------------------------------------

    def matches(self, plan: Plan) -> bool:
        """Whether this is what creating a generation for `plan` now would give."""
        return plan.manifest().items() <= self.manifest.items()

    def problem(self) -> str:
        """What somebody else has changed, as a text for users; empty if nothing."""
        try:
            adoption.check_names(self.directory)
            adoption.check_links(self.directory, self._pins, self.manifest)
            for cgroup, number in self.cgroups.items():
                # the kernel detaches the links of a removed cgroup only some time later
                if not is_cgroup(cgroup, number):
                    if self.follows_units:
                        continue  # its unit has stopped
                    return f"cgroup {cgroup} was removed"
                if not links.complete(self.directory, number):
                    return f"{self.directory}: detached from {cgroup}"
        except LoadFailed as error:
            return str(error)
        except OSError as error:
            if error.errno not in files.PASSING:
                return f"{self.directory}: {error.strerror or error}"
        return ""

    @property
    def cgroups(self) -> dict[Path, int]:
        """The cgroups, with their ids, whose sockets run the programs if nobody detached them."""
        return {Path(path): number for path, number in self.manifest["cgroups"].items()}

    @property
    def follows_units(self) -> bool:
        """Whether it is attached to the cgroups of systemd units, however many of them run."""
        return bool(self.manifest["scope"].get("units"))

    @property
    def attached(self) -> bool:
        """Whether its programs see the sockets of any cgroup."""
        return links.runs(self.directory, "pair")

    @property
    def number(self) -> int:
        """The number in its name; 1 if none was pinned before it."""
        return int(self.directory.name.rpartition("-")[2])

    @property
    def stopped(self) -> bool:
        return bool(self._settings.stopped)

    @property
    def requests(self) -> Fd:
        """Ring buffer with a record whenever a pair has to be retired."""
        return self._pins["requests"]

    @property
    def events(self) -> Fd:
        """Ring buffer of struct event, filled while tracing is on."""
        return self._pins["events"]

    def counters(self) -> dict[str, int]:
        """Sums over all processors, by the names of COUNTERS."""
        raw = libbpf.lookup(self._pins["counters"], _ZERO, _counters_size())
        each = list(record("counters").iter_unpack(raw))
        values = {name: sum(getattr(one, name) for one in each) for name in PLAIN_COUNTERS}
        for name in DECLINED:
            at = CAUSES.index(name)
            values[f"declined_{name}"] = sum(one.declined[at] for one in each)
        for name in RETIRED:
            at = CAUSES.index(name)
            values[f"retired_{name}"] = sum(one.retired[at] for one in each)
        for name in PAUSED:
            at = CAUSES.index(name)
            values[f"paused_{name}"] = sum(one.paused[at] for one in each)
        return {name: values[name] for name in COUNTERS}

    def program_ids(self) -> frozenset[int]:
        return frozenset(int(libbpf.prog_info(self._pins[name]).id) for name in PROGRAMS)

    def capacity(self) -> int:
        """Sockets the sockhash has room for; two per connection."""
        return int(libbpf.map_info(self._pins["peers"]).max_entries)

    def connections(self) -> Iterator[bytes]:
        """A struct connection for each accelerated connection, several at a time, in no order.

        All of them pass through the memory of one read(), however many there are.
        """
        self._settings.listing = time.monotonic_ns() >> 20 & 0xFFFFFFFF or 1
        self._write_settings()
        try:
            for _ in self.opened():  # while listing, it notes owners in the kernel only
                pass
            with libbpf.open_iterator(self._pins[MEMBERS]) as lines:
                while chunk := libbpf.read_iterator(lines):
                    yield chunk
        finally:
            self._settings.listing = 0
            self._write_settings()

    def opened(self) -> Iterator[bytes]:
        """A struct opened for each TCP socket that a process has open, several at a time."""
        return self._lines("owners")

    def reason(self, flow: bytes) -> str:
        """Why the connection was declined or retired; empty if it was not, or long ago."""
        kept = record("recorded_reason")
        slot = hash_of(flow, self._settings.seed) % CAPACITIES["REASONS"]
        found = kept.unpack(
            libbpf.lookup(self._pins["reasons"], struct.pack("=I", slot), kept.size)
        )
        return CAUSES[found.reason] if found.flow == FLOW.unpack(flow) else ""

    def name_listener(self, netns: int, port: int, pid: int, comm: str) -> None:
        """Stores, for events, which process has a listener that is older than the datapath."""
        owner = record("owner").pack(pid=pid, comm=comm.encode()[:15])
        libbpf.update(self._pins["listeners"], listener_key(netns, port), owner)

    def is_tried_in(self, cgroup_id: int) -> None:
        """Ignores a cgroup, since another datapath is tried there; 0 ends that."""
        self._settings.trial = cgroup_id
        self._write_settings()

    # -- live connections --------------------------------------------------------------------

    def candidates(self) -> Iterator[Any]:
        """A struct candidate for each end in scope with traffic, and for each listener."""
        for chunk in self._lines("candidates"):
            yield from record("candidate").iter_unpack(chunk)

    def has_port(self, port: int) -> bool:
        """Whether connections to this listening port are in scope."""
        return bool(self._ports[port >> 3] >> (port & 7) & 1)

    def has_address(self, ip: tuple[int, ...], netns: int) -> bool:
        """Whether it is an address of the daemon's network namespace, which `netns` must be."""
        key = record("address").pack(ip=ip, netns=netns)
        with suppress(FileNotFoundError):
            return bool(libbpf.lookup(self._pins["own_addresses"], key, 4) is not None)
        return False

    def join(self, pairs: Sequence[Joinable]) -> list[str | None]:
        """Puts both ends of these connections on the sockhash.

        For each pair None if that is done, or the cause why not, which is empty if one end is gone.
        A pair with one end that could not be put there is taken off again: nothing was redirected
        to that end, as its peer was not there.
        """
        joining, handshakes = self._pins["joining"], self._pins["handshakes"]
        for pair in pairs:
            key = record("pair").pack(**pair.key)
            left = record("handshake").pack(
                flow=pair.flow(), client_sk=pair.client.sk, server_sk=pair.server.sk
            )
            libbpf.update(handshakes, key, left)
            for side, end in enumerate((pair.client, pair.server)):
                value = record("joining").pack(
                    pair=key, side=side, flow=pair.flow(), server=pair.server_address()
                )
                libbpf.update(joining, end.sk.to_bytes(8, sys.byteorder), value)
        causes: dict[int, str] = {}
        for chunk in self._lines("join"):
            for result in record("joined").iter_unpack(chunk):
                # once an end is there, the next process that has it open finds it on a sockmap
                causes.setdefault(result.sk, CAUSES[result.cause])
        on = {sk for sk, cause in causes.items() if not cause}
        outcomes: list[str | None] = []
        for pair in pairs:
            ends = pair.client.sk, pair.server.sk
            why = next((causes[sk] for sk in ends if causes.get(sk)), "")
            outcomes.append(None if on.issuperset(ends) else why)
            for side, sk in enumerate(ends):
                with suppress(FileNotFoundError):
                    libbpf.delete(joining, sk.to_bytes(8, sys.byteorder))
                if sk in on and not on.issuperset(ends):
                    with suppress(FileNotFoundError):
                        libbpf.delete(
                            self._pins["peers"],
                            record("end").pack(pair=record("pair").pack(**pair.key), side=side),
                        )
            if not on.issuperset(ends):
                with suppress(FileNotFoundError):
                    libbpf.delete(handshakes, record("pair").pack(**pair.key))
        return outcomes

    def _lines(self, program: str) -> Iterator[bytes]:
        """What an iterator over all open files writes, several records at a time."""
        with (
            libbpf.create_iterator_link(self._pins[program]) as link,
            libbpf.open_iterator(link) as lines,
        ):
            while chunk := libbpf.read_iterator(lines):
                yield chunk

    # -- listeners left alone ----------------------------------------------------------------

    def learned(self) -> Iterator[tuple[bytes, bytes]]:
        """struct listener and struct learned_entry of each listener that is left alone."""
        for key in libbpf.keys(self._pins["learned"], LISTENER.size):
            with suppress(FileNotFoundError):  # given up meanwhile
                yield key, libbpf.lookup(self._pins["learned"], key, record("learned_entry").size)

    def add_learned(self, listener: bytes, entry: bytes) -> None:
        libbpf.update(self._pins["learned"], listener, entry)

    def remove_learned(self, listener: bytes) -> None:
        """Removes it with its balance, or the next connection would bring it back."""
        for name in ("balances", "learned"):
            with suppress(FileNotFoundError):
                libbpf.delete(self._pins[name], listener)

    # -- changes -----------------------------------------------------------------------------

    def attach(self, cgroups: Sequence[Path]) -> None:
        """Attaches to these cgroups, none within another, and detaches from others that exist.

        Raises LoadFailed, or OSError if one is gone; links made before that stay.
        """
        numbers = {}
        for cgroup in cgroups:
            try:
                numbers[str(cgroup)] = links.attach(self.directory, self._pins, cgroup)
            except FileNotFoundError:
                if not self.follows_units:  # cgroups of units go when these stop
                    raise
        self.manifest["cgroups"] = numbers
        self._note_scope(numbers.values())
        contents.write_manifest(self._pins["manifest"], self.manifest)
        links.keep_only(self.directory, numbers.values())

    def _note_scope(self, numbers: Collection[int]) -> None:
        """Stores the cgroups in which, and below which, live connections may join."""
        wanted = {number.to_bytes(8, sys.byteorder) for number in numbers}
        there = set(libbpf.keys(self._pins["scope_cgroups"], 8))
        for number in there - wanted:
            libbpf.delete(self._pins["scope_cgroups"], number)
        for number in wanted - there:
            libbpf.update(self._pins["scope_cgroups"], number, bytes(4))

    def kernel_tls(self, there: bool) -> None:
        """Stores whether a program that asks for kTLS would get it from this kernel."""
        if self._settings.ktls != there:
            self._settings.ktls = int(there)
            self._write_settings()

    def trace(self, on: bool) -> None:
        self._settings.trace = int(on)
        self._write_settings()

    def note_addresses(self) -> None:
        """Stores the addresses that this host has now."""
        contents.write_own_addresses(self._pins["own_addresses"])

    def stop(self) -> None:
        """No new pair and no redirect from here on; live connections continue on TCP."""
        if not self._settings.stopped:
            self._settings.stopped = 1
            self._settings.stopped_in = self._settings.epoch
            self._write_settings()
        # the links stay: what is still on the sockhash may be shut down, reset, or connected again
        # (pair/pair.c), or asked for what it cannot do (leave/guard.c)

    def _members(self) -> Iterator[Any]:
        """Visits every socket on the sockhash: a struct member for each."""
        with libbpf.open_iterator(self._pins[MEMBERS]) as lines:
            data = bytearray()
            while chunk := os.read(lines.number, 1 << 20):
                data += chunk
        yield from record("member").iter_unpack(data)

    def purge(self, connections: Set[Flow]) -> None:
        """Takes connections that were reset off the sockhash, with what they have unread.

        Otherwise a reset socket, and so the generation, would stay until its program closes it.
        """
        members = list(self._members())
        pairs = {member.self.pair for member in members if Flow.of(member.flow) in connections}
        for member in members:
            if member.self.pair in pairs:
                with suppress(OSError):  # it has gone
                    libbpf.delete(self._pins["peers"], record("end").pack(**member.self._asdict()))

    def walk(self) -> Walked:
        """Visits every socket on the sockhash and takes the retirements one step further."""
        started = time.monotonic()
        recount = self._begin_recount()
        if self._settings.make_room:
            self._write_settings()  # which the walk before has counted down
        # by end, as the kernel visits a bucket again when its output did not fit in one read()
        members = {(*m.self.pair, m.self.side): m for m in self._members()}
        found = [m for m in members.values() if m.leaving != LEFT_UNREAD]
        if len(found) < len(members) or any(m.border == BORDER_REACHED for m in found):
            self._rewake()
        if recount:
            held = sum(m.charged for m in found)
            libbpf.update(self._pins["unread_memory"], _ZERO, held.to_bytes(8, sys.byteorder))
        staying = [m for m in found if not m.leaving]
        fills = self._make_room(len(found))
        self.walk_seconds = time.monotonic() - started
        return Walked(
            entries=len(found),
            connections=len({m.self.pair for m in staying}),
            leaving=len(found) - len(staying),
            broken=frozenset(
                (FLOW.pack(**m.flow._asdict()), m.self.side) for m in found if m.leaving == BROKEN
            ),
            unsettled=fills + sum(1 for m in staying if m.border or m.waiting),
        )

    def _make_room(self, entries: int) -> bool:
        """Has later walks take idle pairs off a sockhash that is nearly full.

        Returns whether the next one is the first to do so.
        """
        room = ROOM_PAIRS if entries > NEARLY_FULL * self.capacity() else 0
        if bool(room) == bool(self._settings.make_room):
            return False
        self._settings.make_room = room
        self._write_settings()
        return bool(room)

    def _begin_recount(self) -> bool:
        """Whether what is charged for unread data is to be counted anew.

        Connections that are idle, or have ended unseen, hold more of the budget than they need.
        With another number of grants each sender asks for a new one before its next message.
        """
        total, wanted = self._pins["unread_memory"], (1).to_bytes(4, sys.byteorder)
        charged = int.from_bytes(libbpf.lookup(total, _ZERO, 8), sys.byteorder, signed=True)
        asked = any(libbpf.lookup(total, wanted, 8))
        if not asked and 0 <= charged < self._settings.memory_bytes // 2:
            return False
        libbpf.update(total, wanted, bytes(8))
        for cgroup in list(libbpf.keys(self._pins["cgroup_memory"], 8)):
            with suppress(FileNotFoundError):
                libbpf.delete(self._pins["cgroup_memory"], cgroup)
        self._settings.grants = (self._settings.grants + 1) & 0xFFFFFFFF
        self._write_settings()
        return True

    def _rewake(self) -> None:
        """Wakes pollers of sockets that left with unread data, see leave/rewake.c."""
        with (
            libbpf.create_iterator_link(self._pins["rewake"]) as link,
            libbpf.open_iterator(link) as lines,
        ):
            while libbpf.read_iterator(lines):
                pass

    def retire(self, timeout: float, done: Callable[[Walked], bool]) -> bool:
        """Walks, a grace period apart, for at most `timeout` seconds. Returns whether `done` was.

        The kernel tells nobody when a reader has drained its queue, so this has to look.
        """
        deadline = time.monotonic() + timeout
        pause = 0.0005
        # a pair that a guard refused may leave at once, and one whose reader may block soon after
        for _ in range(2 if not self._settings.stopped else 0):
            walked = self.walk()
            if done(walked):
                return True
            if not walked.unsettled:
                break
            time.sleep(SHOWS_S)
        while True:
            libbpf.wait_for_programs()
            self._settings.epoch += 1
            self._write_settings()
            if done(self.walk()):
                return True
            if time.monotonic() + pause > deadline:
                return False
            time.sleep(pause)
            pause = min(max(pause * 2, WALK_SHARE * self.walk_seconds), 0.05)

    def remove(self) -> None:
        """Deletes the pins; the sockhash must be empty, as deleting it purges unread data."""
        if not self.stopped or self.walk().entries:
            raise Internal(f"{self.directory} still has sockets on its sockhash")
        programs = self.program_ids()
        maps = [libbpf.map_info(self._pins[name]).id for name in MAPS]
        if self.directory.exists():  # somebody else may have removed it
            staging = self.directory.with_name(self.directory.name.replace("generation", "staging"))
            self.directory.rename(staging)
            discard(staging)
        self.close()
        _wait_until_freed(programs, maps)

    def close(self) -> None:
        for fd in self._pins.values():
            fd.close()

    def _write_settings(self) -> None:
        libbpf.update(self._pins["settings"], _ZERO, self._settings.pack())


def _counters_size() -> int:
    return record("counters").size * libbpf.possible_cpus()


def _wait_until_freed(programs: frozenset[int], maps: list[int]) -> None:
    """The kernel frees programs and maps a moment after the last reference is gone.

    A thread blocked in recv() on a connection that was accelerated holds one (its psock's copy of
    the sk_msg program) until it returns, so this does not wait for long. Without CAP_SYS_ADMIN
    everything looks freed, and this does not wait at all.
    """
    deadline = time.monotonic() + RELEASE_TIMEOUT_S
    while time.monotonic() < deadline:
        if not any(map(libbpf.prog_exists, programs)) and not any(map(libbpf.map_exists, maps)):
            return
        time.sleep(0.005)
