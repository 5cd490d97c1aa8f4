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
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from sockredird.datapath import adoption, contents, links, visits
from sockredird.datapath.adoption import MAPS
from sockredird.datapath.members import Members
from sockredird.datapath.plan import Plan
from sockredird.datapath.settings import LiveSettings, begin_request, order_requests
from sockredird.errors import AccessDenied, Internal, LoadFailed
from sockredird.kernel import capabilities, files, libbpf
from sockredird.kernel.cgroup import is_cgroup
from sockredird.kernel.libbpf import Fd
from sockredird.loader import compiler
from sockredird.loader.header import record
from sockredird.loader.records import (
    CAUSES,
    COUNTERS,
    DECLINED,
    FLOW,
    LISTENER,
    PAUSED,
    PLAIN_COUNTERS,
    REQUEST_JOIN,
    REQUEST_LEARNED,
    REQUEST_ULP,
    RETIRED,
    Settings,
    hash_of,
    listener_key,
)
from sockredird.loader.shapes import CAPACITIES, PROGRAMS

log = logging.getLogger(__name__)

RELEASE_TIMEOUT_S = 0.5
_ZERO = bytes(4)

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
        self._settings = LiveSettings(pins["settings"])
        self.members = Members(pins, self._settings)
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
            generation._settings.set(stopped=0)  # from here on sockets are put on the sockhash
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
        before = self._settings.now
        libbpf.update(self._pins["ports"], _ZERO, contents.port_bits({port}))
        # only the port of the scope applies: the rest may exclude the place of the trial
        tried = Settings(
            epoch=before.epoch,
            window_bytes=window_bytes,
            blocking=1,
            recent=before.recent,
            revalidate=before.revalidate,
            memory_bytes=before.memory_bytes,
        )
        try:
            with links.held(self._pins, cgroup):
                self._settings.replace(tried)
                yield
        finally:
            self._settings.replace(before)
            libbpf.update(self._pins["ports"], _ZERO, ports)
            libbpf.update(self._pins["counters"], _ZERO, bytes(_counters_size()))

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
        return bool(self._settings.now.stopped)

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
        for field, names in (("declined", DECLINED), ("retired", RETIRED), ("paused", PAUSED)):
            for name in names:
                at = CAUSES.index(name)
                values[f"{field}_{name}"] = sum(getattr(one, field)[at] for one in each)
        return {name: values[name] for name in COUNTERS}

    def program_ids(self) -> frozenset[int]:
        return frozenset(int(libbpf.prog_info(self._pins[name]).id) for name in PROGRAMS)

    def connections(self) -> Iterator[bytes]:
        """A struct connection for each accelerated connection, several at a time, in no order.

        All of them pass through the memory of one read(), however many there are.
        """
        self._settings.set(listing=time.monotonic_ns() >> 20 & 0xFFFFFFFF or 1)
        try:
            for _ in self.opened():  # while listing, it notes owners in the kernel only
                pass
            yield from visits.visit(self._pins, record("connection").size)
        finally:
            self._settings.set(listing=0)

    def opened(self) -> Iterator[bytes]:
        """A struct opened for each TCP socket that a process has open, several at a time."""
        return libbpf.iterate(self._pins["owners"])

    def reason(self, flow: bytes) -> str:
        """Why the connection was declined or retired; empty if it was not, or long ago."""
        kept = record("recorded_reason")
        slot = hash_of(flow, self._settings.now.seed) % CAPACITIES["REASONS"]
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
        self._settings.set(trial=cgroup_id)

    # -- live connections --------------------------------------------------------------------

    def candidates(self) -> Iterator[Any]:
        """A struct candidate for each end in scope with traffic, and for each listener."""
        begin_request(self._pins["requested"], REQUEST_JOIN)
        order_requests()
        for chunk in libbpf.iterate(self._pins["candidates"]):
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

    # -- listeners left alone ----------------------------------------------------------------

    def begin_learned(self) -> None:
        """To be called before learned() and kernel_tls(), see begin_request()."""
        for what in (REQUEST_LEARNED, REQUEST_ULP):
            begin_request(self._pins["requested"], what)
        order_requests()

    def learned(self) -> Iterator[tuple[bytes, bytes]]:
        """struct listener and struct learned_entry of each listener that is left alone."""
        for key in libbpf.keys(self._pins["learned"], LISTENER.size):
            with suppress(FileNotFoundError):  # given up meanwhile
                yield key, libbpf.lookup(self._pins["learned"], key, record("learned_entry").size)

    def add_learned(self, listener: bytes, entry: bytes) -> None:
        libbpf.update(self._pins["learned"], listener, entry)

    def remove_learned(self, *listeners: bytes) -> None:
        """Removes them with their balances, or the next connection would bring them back."""
        if not listeners:
            return
        ports = {(doomed.netns, doomed.port) for doomed in map(LISTENER.unpack, listeners)}
        for key in list(libbpf.keys(self._pins["balances"], LISTENER.size)):
            found = LISTENER.unpack(key)
            if (found.netns, found.port) in ports:
                with suppress(FileNotFoundError):
                    libbpf.delete(self._pins["balances"], key)
        for listener in listeners:
            with suppress(FileNotFoundError):
                libbpf.delete(self._pins["learned"], listener)

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
        if self._settings.now.ktls != there:
            self._settings.set(ktls=int(there))

    def trace(self, on: bool) -> None:
        self._settings.set(trace=int(on))

    def note_addresses(self) -> None:
        """Stores the addresses that this host has now."""
        contents.write_own_addresses(self._pins["own_addresses"])

    def stop(self) -> None:
        """No new pair and no redirect from here on; live connections continue on TCP."""
        if not self.stopped:
            self._settings.set(stopped=1, stopped_in=self._settings.now.epoch)
        # the links stay: what is still on the sockhash may be shut down, reset, or connected again
        # (pair/pair.c), or asked for what it cannot do (leave/guard.c)

    def remove(self) -> None:
        """Deletes the pins; the sockhash must be empty, as deleting it purges unread data."""
        if not self.stopped or self.members.walk().entries:
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
