"""Why a connection or a listener is accelerated or not.

The reason that the datapath has recorded comes first. For a socket that the datapath never saw,
sock_diag(7) says what it is, and that is compared with the scope.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sockredird.config import Scope
from sockredird.datapath.causes import sentence
from sockredird.datapath.generation import Generation
from sockredird.datapath.join import Left
from sockredird.datapath.learned import Learned
from sockredird.errors import InvalidConfig
from sockredird.kernel import addresses, sockdiag
from sockredird.kernel.cgroup import Names
from sockredird.kernel.sockdiag import Address, Namespace, Socket
from sockredird.loader.records import flow_key
from sockredird.observe import listing, owners

MOST = 200  # connections explained at a time

# Reasons that the datapath does not record; for the others see datapath/causes.py.
UNSEEN = {
    "address": "an address is not in scope",
    "port": "the listening port is not in scope",
    "cgroup": "a program is outside the cgroups in scope",
    "before_enable": "it was established before acceleration was enabled, and joins when it "
    "carries messages and its readers poll",
}


@dataclass(frozen=True)
class View:
    """The part of the daemon's state that an explanation needs."""

    enabled: bool
    scope: Scope
    cgroups: tuple[str, ...]  # in scope, as in /proc/PID/cgroup
    excluded: tuple[str, ...]  # from those: exclude_cgroups, and the cgroups of exclude_units
    replaced: bool  # another datapath was in force before this one, since acceleration was enabled
    generations: list[Generation]
    learned: Learned
    left: dict[bytes, Left]  # why live connections cannot join now, by struct flow


@dataclass(frozen=True)
class Subject:
    """A listener, or a connection with those of its ends that are in this network namespace."""

    server: Address
    client: Address | None = None
    server_socket: Socket | None = None
    client_socket: Socket | None = None

    @property
    def sockets(self) -> list[Socket]:
        return [s for s in (self.client_socket, self.server_socket) if s is not None]

    def turned(self) -> Subject:
        """The same connection with client and server exchanged."""
        assert self.client is not None
        return Subject(self.client, self.server, self.client_socket, self.server_socket)

    def flow(self, netns: int) -> bytes:
        assert self.client is not None
        client, server = self.client, self.server
        return flow_key((client.packed, client.port), (server.packed, server.port), netns)


def explain(view: View, keys: dict[str, Any]) -> list[dict[str, Any]]:
    """An answer for each listener and connection that `keys` select. Raises InvalidConfig.

    `keys`: `local` and `remote` (addresses of one connection, in either order), or `pid`, `pids`,
    `unit` or `port`.
    """
    asked = view.generations[0] if view.generations else None
    chosen = _chooser(keys, asked)
    namespace = sockdiag.look(keys.get("pid", 0) or next(iter(keys.get("pids", [])), 0))
    learned = {x.port for x in view.learned.entries() if x.netns == namespace.cookie}
    subjects = list(_subjects(namespace, chosen, learned))
    if not subjects and "local" in keys:
        local, remote = Address.parse(keys["local"]), Address.parse(keys["remote"])
        subjects = _gone(view, namespace, local, remote)
    subjects = subjects[:MOST]
    connections = [s for s in subjects if s.client is not None]
    # only the datapath knows for certain which end is the client
    both_ways = [s for one in connections for s in (one, one.turned())]
    flows = {s.flow(namespace.cookie) for s in both_ways}
    members = listing.with_flows(view.generations, flows) if flows else {}
    inodes = {s.inode for subject in subjects for s in subject.sockets if s.inode}
    processes = owners.find(asked, inodes) if asked else {}
    names = Names()
    answers = []
    for one in subjects:
        subject = one
        if one.client is not None:
            turned = one.turned()
            if _known(view, turned.flow(namespace.cookie), members):
                subject = turned
        member: dict[str, Any] = {}
        if subject.client is None:
            state, reason = _state_of_listener(view, subject, names)
        else:
            flow = subject.flow(namespace.cookie)
            member = members.get(flow, {})
            state, reason = _state_of_connection(
                view, subject, flow, member, names, namespace.cookie
            )
        entry = view.learned.about(namespace.cookie, subject.server.port)
        if entry and (state, reason) in (("in_scope", ""), ("tcp", "before_enable")):
            state, reason = "tcp" if subject.client else "out_of_scope", "learned"
        elif not entry and reason == "learned":
            entry = view.learned.about_clients(namespace.cookie, subject.server.port)
        answer = _answer(view, subject, state, reason, processes, names)
        if entry and reason == "learned":
            answer["detail"] += f": {entry.sentence()}"
        elif subject.client is not None and reason == "blocking_reader":
            answer["detail"] = _of_reader(view.left.get(flow))
        answers.append({**member, **answer})
    return answers + _elsewhere(view, keys, flows)[: MOST - len(answers)]


def _elsewhere(view: View, keys: dict[str, Any], seen: set[bytes]) -> list[dict[str, Any]]:
    """Accelerated connections that `keys` select, in other namespaces than the one looked at.

    The datapath lists those of all namespaces. `seen`: flows that are explained already.
    """
    ends: set[str] = set()
    if "local" in keys:
        ends = {str(Address.parse(keys[key])) for key in ("local", "remote")}
    query = listing.Query.of({k: v for k, v in keys.items() if k not in ("local", "remote")})
    answers = []
    for flows, member in listing.matching(view.generations, query):
        places = (
            {member["client"], member["server"]},
            {member["client"], member.get("accepted_at")},
        )
        if flows & seen or (ends and ends not in places):
            continue
        reason = member["reason"]
        state = "leaving" if member["leaving"] else "accelerated"
        detail = sentence(reason) if reason else ""
        answers.append({**member, "kind": "connection", "state": state, "detail": detail})
    return answers


def name_listeners(generation: Generation) -> None:
    """Stores the processes of listeners that are older than the datapath, for its events."""
    namespace = sockdiag.look()
    listening = [s for s in namespace.sockets if s.listening]
    processes = owners.find(generation, {s.inode for s in listening})
    for s in listening:
        if process := processes.get(s.inode):
            generation.name_listener(namespace.cookie, s.local.port, process.pid, process.comm)


# -- which sockets are meant ---------------------------------------------------------------------


def _chooser(keys: dict[str, Any], asked: Generation | None) -> Callable[[Socket], bool]:
    match keys:
        case {"local": str(local), "remote": str(remote), **rest} if not rest:
            ends = {Address.parse(local), Address.parse(remote)}
            return lambda s: {s.local, s.remote} == ends
        case {"pid": int(pid), **rest} if not rest:
            return _opened_by(asked, [pid])
        case {"pids": list(pids), **rest} if not rest:
            return _opened_by(asked, pids)
        case {"unit": str(unit), **rest} if not rest and unit:
            names = Names()
            return lambda s: listing.in_unit(names.path(s.cgroup), unit)
        case {"port": int(port), **rest} if not rest:
            return lambda s: port in (s.local.port, s.remote.port)
    raise InvalidConfig("name a connection by local and remote, or a pid, a unit, or a port")


def _opened_by(asked: Generation | None, pids: list[int]) -> Callable[[Socket], bool]:
    if asked is None:
        raise InvalidConfig(
            "which sockets a process has is not known while acceleration is disabled: "
            "name a connection, a port or a unit"
        )
    inodes = owners.sockets_of(asked, pids)
    return lambda s: s.inode in inodes


def _subjects(
    namespace: Namespace, chosen: Callable[[Socket], bool], learned: set[int]
) -> Iterator[Subject]:
    """Listeners first, then each connection once, whichever of its ends was chosen.

    `learned`: ports of learned listeners, which need not exist any more.
    """
    by_ends = {(s.local, s.remote): s for s in namespace.sockets if not s.listening}
    listening = learned | {s.local.port for s in namespace.sockets if s.listening}
    meant = [s for s in namespace.sockets if chosen(s)]
    yield from (Subject(s.local, server_socket=s) for s in meant if s.listening)
    done: set[tuple[Address, Address]] = set()
    for one in meant:
        if one.listening or (one.local, one.remote) in done:
            continue
        done |= {(one.local, one.remote), (one.remote, one.local)}
        other = by_ends.get((one.remote, one.local))
        # the server's port is the one that somebody listens on, or else the lower one
        local_serves = one.local.port in listening
        if local_serves == (one.remote.port in listening):
            local_serves = one.local.port < one.remote.port
        if local_serves:
            yield Subject(one.local, one.remote, server_socket=one, client_socket=other)
        else:
            yield Subject(one.remote, one.local, server_socket=other, client_socket=one)


def _gone(view: View, namespace: Namespace, local: Address, remote: Address) -> list[Subject]:
    """A connection that has no socket any more, if the datapath has recorded a reason."""
    for subject in (Subject(remote, local), Subject(local, remote)):
        flow = subject.flow(namespace.cookie)
        if _known(view, flow, {}):
            return [subject]
    return []


def _known(view: View, flow: bytes, members: dict[bytes, dict[str, Any]]) -> bool:
    known = flow in members or flow in view.left
    return known or any(g.reason(flow) for g in view.generations)


# -- why -----------------------------------------------------------------------------------------


def _addresses_in_scope(scope: str, client: Address, server: Address, netns: int) -> bool:
    if scope == "host" and client.ip != server.ip and not server.ip.is_loopback:
        ours = netns == addresses.netns_cookie()
        return ours and {client.packed, server.packed} <= addresses.own()
    return scope != "loopback" or (client.ip.is_loopback and server.ip.is_loopback)


def _state_of_connection(
    view: View, subject: Subject, flow: bytes, member: dict[str, Any], names: Names, namespace: int
) -> tuple[str, str]:
    """State and reason of a connection."""
    if member:
        return ("leaving", member["reason"]) if member["leaving"] else ("accelerated", "")
    if view.enabled and (left := view.left.get(flow)):
        return "tcp", left.cause
    for generation in view.generations:
        if reason := generation.reason(flow):
            return "tcp", reason
    if not view.enabled:
        return "tcp", "disable"
    assert subject.client is not None
    if not _addresses_in_scope(view.scope.addresses, subject.client, subject.server, namespace):
        return "tcp", "address"
    if reason := _out_of_scope(view, subject.sockets, subject.server.port, names):
        return "tcp", reason
    if len(subject.sockets) < 2:
        return "tcp", "peer_outside"
    return "tcp", _unsuitable(subject.sockets) or "before_enable"


def _state_of_listener(view: View, subject: Subject, names: Names) -> tuple[str, str]:
    """State and reason of the connections that a listener accepts."""
    if not view.enabled:
        return "out_of_scope", "disable"
    if view.scope.addresses == "loopback" and not (
        subject.server.ip.is_loopback or subject.server.ip.is_unspecified
    ):
        return "out_of_scope", "address"
    reason = _out_of_scope(view, subject.sockets, subject.server.port, names)
    reason = reason or _unsuitable(subject.sockets)
    return ("out_of_scope", reason) if reason else ("in_scope", "")


def _out_of_scope(view: View, sockets: list[Socket], server_port: int, names: Names) -> str:
    if server_port not in view.scope.ports():
        return "port"
    paths = [names.path(s.cgroup) for s in sockets if s.cgroup]
    if not all(_is_below(path, view.cgroups) for path in paths):
        return "cgroup"
    if any(_is_below(path, view.excluded) for path in paths):
        return "cgroup"
    return ""


def _is_below(path: str, cgroups: Iterable[str]) -> bool:
    return any(f"{path}/".startswith(cgroup.rstrip("/") + "/") for cgroup in cgroups if cgroup)


def _unsuitable(sockets: list[Socket]) -> str:
    ulps = {s.ulp for s in sockets} - {""}
    return "mptcp" if ulps == {"mptcp"} else "ulp" if ulps else ""


def _answer(
    view: View,
    subject: Subject,
    state: str,
    reason: str,
    processes: dict[int, owners.Process],
    names: Names,
) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "kind": "listener" if subject.client is None else "connection",
        "server": str(subject.server),
        "state": state,
        "reason": reason,
        "detail": _detail(view, subject, reason, names),
    }
    if subject.client is not None:
        answer["client"] = str(subject.client)
    for side, socket in (("client", subject.client_socket), ("server", subject.server_socket)):
        if socket is None:
            continue
        answer[f"{side}_cgroup"] = names.path(socket.cgroup)
        if process := processes.get(socket.inode):
            answer[f"{side}_pid"] = process.pid
            answer[f"{side}_comm"] = process.comm
    return answer


def _of_reader(left: Left | None) -> str:
    """Of a connection whose reader sleeps; without `left` it is not known which end's."""
    who = f"the {left.side}'s program" if left is not None else "a program"
    return f"{sentence('blocking_reader', who=who)}; the connection joins when it polls"


def _detail(view: View, subject: Subject, reason: str, names: Names) -> str:
    if not reason:
        return ""
    detail = UNSEEN.get(reason) or sentence(reason)
    if reason == "address":
        detail += f': addresses = "{view.scope.addresses}"'
    elif reason == "cgroup":
        paths = sorted({names.path(s.cgroup) for s in subject.sockets})
        inside = ", ".join(filter(None, view.cgroups)) or "no running unit"
        detail += f": {inside}"
        if view.excluded:
            detail += f", except {', '.join(view.excluded)}"
        detail += f"; the sockets belong to {', '.join(paths)}"
    elif reason == "port":
        only = view.scope.only_ports
        detail += f": it is {subject.server.port}, and " + (
            f"only_ports has {', '.join(map(str, only))}"
            if only and subject.server.port not in only
            else "exclude_ports has it"
        )
    elif reason == "before_enable" and view.replaced:
        detail = (
            "it is older than the datapath in force, which replaced another one, as the scope was "
            "changed or sockredird upgraded; it joins when it carries messages and its readers poll"
        )
    elif reason == "ulp":
        found = sorted({s.ulp for s in subject.sockets} - {""})
        detail += f": {', '.join(found)}" if found else ""
    return detail
