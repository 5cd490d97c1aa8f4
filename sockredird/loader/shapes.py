"""The datapath's programs and maps: what type each has, how large it is, and where it is attached.

Creating a generation compares the size of every map with the kernel's.
"""

from __future__ import annotations

from dataclasses import dataclass

from sockredird.kernel.uapi import AttachType, MapType, ProgType
from sockredird.loader.header import enumerators, record


@dataclass(frozen=True)
class ProgramShape:
    function: str  # in the C source
    kind: ProgType
    attach_type: AttachType = AttachType.NONE
    targets: tuple[str, ...] = ()  # a tracing program is for the first that the kernel has


def _tracing(function: str, attach_type: AttachType, *targets: str) -> ProgramShape:
    return ProgramShape(function, ProgType.TRACING, attach_type, targets)


# By the names of their pins; iterators are for functions that do nothing (DEFINE_BPF_ITER_FUNC()).
PROGRAMS = {
    "pair": ProgramShape("sockredir_pair", ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS),
    "redirect": ProgramShape("sockredir_msg", ProgType.SK_MSG, AttachType.SK_MSG_VERDICT),
    "guard": ProgramShape("sockredir_guard", ProgType.CGROUP_SOCKOPT, AttachType.CGROUP_SETSOCKOPT),
    "walk": _tracing("sockredir_walk", AttachType.TRACE_ITER, "bpf_iter_sockmap"),
    "owners": _tracing("sockredir_owners", AttachType.TRACE_ITER, "bpf_iter_task_file"),
    "candidates": _tracing("sockredir_candidates", AttachType.TRACE_ITER, "bpf_iter_task_file"),
    "join": _tracing("sockredir_join", AttachType.TRACE_ITER, "bpf_iter_task_file"),
    "rewake": _tracing("sockredir_rewake", AttachType.TRACE_ITER, "bpf_iter_tcp"),
}
# Loaded in place of one of PROGRAMS that the kernel does not permit.
SUBSTITUTES = {"walk": ProgramShape("sockredir_visit", ProgType.SCHED_CLS)}
# Programs of leave/detect.c and fionread.c, where the kernel has fentry, by the words for what
# they see.
DETECTORS = {
    "splice": _tracing("sockredir_spliced", AttachType.TRACE_FENTRY, "tcp_splice_read"),
    "recv": _tracing("sockredir_receiving", AttachType.TRACE_FENTRY, "tcp_bpf_recvmsg"),
    "received": _tracing("sockredir_received", AttachType.TRACE_FEXIT, "tcp_bpf_recvmsg"),
    "send": _tracing("sockredir_sending", AttachType.TRACE_FENTRY, "tcp_bpf_sendmsg"),
    "fionread_answer": _tracing(
        "sockredir_answered", AttachType.TRACE_FEXIT, "sk_ioctl", "tcp_ioctl"
    ),
    "fionread": _tracing("sockredir_asking", AttachType.TRACE_FENTRY, "tcp_ioctl"),
}
DETECTOR_PREFIX = "detector-"


def detector_pin(name: str) -> str:
    """The name under which one of DETECTORS is pinned."""
    return DETECTOR_PREFIX + name


# Programs that the sockets of each cgroup in scope run; the guard first, as no socket is to be on
# the sockhash without it.
ATTACHMENTS = {name: PROGRAMS[name].attach_type for name in ("guard", "pair")}
# How many entries the maps have that do not grow with max_connections; -D flags for the compiler.
CAPACITIES = {
    "LEARNED_ENTRIES": 4096,  # listeners left alone
    "BALANCED_LISTENERS": 8192,  # listeners whose balance is known
    "SYN_RECORDS": 16384,  # answered SYNs whose client is not established yet; a power of two
    "UNMATCHED_CLIENTS": 1024,  # established without a record; a power of two
    "KNOWN_READERS": 8192,  # listeners, or users' clients of them, that have read by recv(2)
    "LEAVING_PAIRS": 16384,  # that leave the sockhash one by one, at the same time
    "TRACED_CONNECTIONS": 8192,  # whose programs are known by name, or one of whose ends has closed
    "REASONS": 16384,  # connections that explain knows a reason for; a power of two
    "LIMITED_CGROUPS": 4096,  # with a memory limit, and accelerated readers
    "JOINING": 8192,  # ends that are put on the sockhash at a time
    "SCOPE_CGROUPS": 4096,  # cgroups to which the programs are attached
    "OWN_ADDRESSES": 4096,  # of the daemon's network namespace
    "EXCLUDED_STEPS": 1024,  # names on the paths of excluded cgroups
}
DECLINED_CLIENTS = 8192  # that their server end has not met yet


@dataclass(frozen=True)
class MapShape:
    type: MapType
    key_size: int
    value_size: int
    max_entries: int


def _array(value_size: int, entries: int = 1) -> MapShape:
    return MapShape(MapType.ARRAY, 4, value_size, entries)


def map_shapes(max_connections: int, page_size: int) -> dict[str, MapShape]:
    """Every map of the datapath by its name, as it is made for a limit on connections."""
    size = {name: record(name).size for name in _VALUES}
    room = CAPACITIES

    def lru(key: str, value: int, entries: int) -> MapShape:
        return MapShape(MapType.LRU_HASH, size[key], value, entries)

    def hashed_by_address(value: int, entries: int) -> MapShape:
        return MapShape(MapType.HASH, 8, value, entries)

    def hashed(key: str, value: int, entries: int) -> MapShape:
        return MapShape(MapType.HASH, size[key], value, entries)

    return {
        "peers": MapShape(MapType.SOCKHASH, size["end"], 4, 2 * max_connections),
        "sockets": MapShape(MapType.SK_STORAGE, 4, size["sock_state"], 0),
        "handshakes": lru("pair", size["handshake"], max_connections + DECLINED_CLIENTS),
        "flow_syns": _array(size["flow_syn"], room["SYN_RECORDS"]),
        "client_syns": _array(size["client_syn"], room["SYN_RECORDS"]),
        "unmatched": _array(size["unmatched_client"], room["UNMATCHED_CLIENTS"]),
        "own_addresses": hashed("address", 4, room["OWN_ADDRESSES"]),
        "excluded": hashed("step", 4, room["EXCLUDED_STEPS"]),
        "leaving": lru("pair", size["leaving"], room["LEAVING_PAIRS"]),
        "unread_left": lru("end", 4, room["LEAVING_PAIRS"]),
        "callers": lru("flow", size["caller"], room["TRACED_CONNECTIONS"]),
        "listeners": lru("listener", size["owner"], room["TRACED_CONNECTIONS"]),
        "closing": lru("pair", size["closing"], room["TRACED_CONNECTIONS"]),
        "reasons": _array(size["recorded_reason"], room["REASONS"]),
        "learned": hashed("listener", size["learned_entry"], room["LEARNED_ENTRIES"]),
        "balances": lru("listener", 4, room["BALANCED_LISTENERS"]),
        "known_readers": lru("listener", 4, room["KNOWN_READERS"]),
        "settings": _array(size["settings"]),
        "walked": _array(size["walked"]),
        "visits": _array(size["visits"]),
        "change_count": _array(8),
        "joining": hashed_by_address(size["joining"], room["JOINING"]),
        "scope_cgroups": hashed_by_address(4, room["SCOPE_CGROUPS"]),
        "unread_memory": _array(size["unread_memory"]),
        "cgroup_memory": MapShape(MapType.LRU_HASH, 8, 8, room["LIMITED_CGROUPS"]),
        "ports": _array(size["ports"]),
        "counters": MapShape(MapType.PERCPU_ARRAY, 4, size["counters"], 1),
        "line": MapShape(MapType.PERCPU_ARRAY, 4, size["connection"], 1),
        "manifest": _array(size["manifest"]),
        "requested": _array(8, len(enumerators("request"))),
        "requests": MapShape(MapType.RINGBUF, 0, 0, page_size),
        "events": MapShape(MapType.RINGBUF, 0, 0, 64 * page_size),
    }


# Structs that are keys or values of maps.
_VALUES = (
    *("end", "pair", "flow", "sock_state", "handshake", "flow_syn", "client_syn"),
    *("unmatched_client", "address", "step", "leaving", "caller", "owner", "listener", "closing"),
    *("recorded_reason", "learned_entry", "joining", "settings", "ports", "counters", "connection"),
    *("manifest", "walked", "visits", "unread_memory"),
)
