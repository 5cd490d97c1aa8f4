"""The datapath's programs, maps and records as Python sees them.

Mirrors bpf/sockredir.h; creating a generation checks every size against the kernel's.
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass
from ipaddress import IPv6Address

from sockredird.kernel.uapi import AttachType, MapType, ProgType


@dataclass(frozen=True)
class ProgramShape:
    function: str  # in the C source
    kind: ProgType
    attach_type: AttachType
    target: str = ""  # kernel function that a tracing program is for


def _tracing(function: str, attach_type: AttachType, target: str) -> ProgramShape:
    return ProgramShape(function, ProgType.TRACING, attach_type, target)


# By the names of their pins; iterators are for functions that do nothing (DEFINE_BPF_ITER_FUNC()).
PROGRAMS = {
    "pair": ProgramShape("sockredir_pair", ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS),
    "redirect": ProgramShape("sockredir_msg", ProgType.SK_MSG, AttachType.SK_MSG_VERDICT),
    "guard": ProgramShape("sockredir_guard", ProgType.CGROUP_SOCKOPT, AttachType.CGROUP_SETSOCKOPT),
    "walk": _tracing("sockredir_walk", AttachType.TRACE_ITER, "bpf_iter_sockmap"),
    "owners": _tracing("sockredir_owners", AttachType.TRACE_ITER, "bpf_iter_task_file"),
    "nudge": _tracing("sockredir_nudge", AttachType.TRACE_ITER, "bpf_iter_tcp"),
}
# Programs of detect.c, where the kernel has fentry, by the words for what they see.
DETECTORS = {
    "splice": _tracing("sockredir_spliced", AttachType.TRACE_FENTRY, "tcp_splice_read"),
    "recv": _tracing("sockredir_receiving", AttachType.TRACE_FENTRY, "tcp_bpf_recvmsg"),
    "received": _tracing("sockredir_received", AttachType.TRACE_FEXIT, "tcp_bpf_recvmsg"),
    "send": _tracing("sockredir_sending", AttachType.TRACE_FENTRY, "tcp_bpf_sendmsg"),
    "fionread": _tracing("sockredir_asking", AttachType.TRACE_FENTRY, "tcp_ioctl"),
}
DETECTOR_PREFIX = "detector-"


def detector_pin(name: str) -> str:
    """The name under which one of DETECTORS is pinned."""
    return DETECTOR_PREFIX + name


# Programs that the sockets of each cgroup in scope run; the guard first, as no socket is to be on
# the sockhash without it.
ATTACHMENTS = {name: PROGRAMS[name].attach_type for name in ("guard", "pair")}
WORDS = 16384  # SYNs that a listener has answered, the client not yet established; a power of two
UNPROVEN = 1024  # clients established unanswered, their server end not yet; a power of two
DECLINED_CLIENTS = 8192  # that their server end has not met yet
LEAVING_PAIRS = 16384  # that leave acceleration one by one, at the same time
TRACED_CONNECTIONS = 8192  # whose programs are known by name, or one of whose ends has closed
OWN_ADDRESSES = 4096  # of the daemon's network namespace
EXCLUDED_STEPS = 1024  # names on the paths of excluded cgroups
VERDICTS = 16384  # connections that explain knows something of; a power of two
LESSONS = 4096  # listeners left alone
SHORTCUTS = 4096  # places for 65536 ports to share; a power of two
BALANCED_LISTENERS = 8192  # of which is known whether acceleration does them good
CAPACITIES = {
    "LESSONS": LESSONS,
    "SHORTCUTS": SHORTCUTS,
    "BALANCED_LISTENERS": BALANCED_LISTENERS,
    "WORDS": WORDS,
    "UNPROVEN": UNPROVEN,
    "LEAVING_PAIRS": LEAVING_PAIRS,
    "TRACED_CONNECTIONS": TRACED_CONNECTIONS,
    "VERDICTS": VERDICTS,
    "OWN_ADDRESSES": OWN_ADDRESSES,
    "EXCLUDED_STEPS": EXCLUDED_STEPS,
}
PORTS_SIZE = 65536 // 8
MANIFEST_SIZE = 16384

# Counters, in the order of enum counter.
COUNTERS = (
    "accelerated_connections",
    "redirected_messages",
    "redirected_bytes",
    "dropped_events",
    "declined_peer_outside",
    "declined_undecidable",
    "declined_early_data",
    "declined_ulp",
    "declined_mptcp",
    "declined_zerocopy",
    "declined_repair",
    "declined_rcvlowat",
    "declined_oobinline",
    "declined_option",
    "declined_learned",
    "declined_kernel_socket",
    "declined_mismatch",
    "declined_map_full",
    "declined_other_sockmap",
    "declined_no_memory",
    "retired_window",
    "retired_messages",
    "retired_small_stream",
    "retired_late_pairing",
    "retired_half_closed",
    "retired_peer_gone",
    "retired_other_sockmap",
    "retired_rcvlowat",
    "retired_zerocopy",
    "retired_oobinline",
    "retired_repair",
    "retired_option",
    "retired_ulp",
    "retired_splice",
    "retired_waitall",
    "retired_trunc",
    "retired_oob",
    "retired_woken",
    "retired_fionread",
    "retired_disable",
)

COUNTER_SLOTS = 64

SETTINGS = struct.Struct("=10I2Q")  # struct settings
MEMBER = struct.Struct("=3I3I3Q48s")  # struct member
FLOW = struct.Struct("=16s16sQHH4x")  # struct flow
PLACE = struct.Struct("=16sQI4x")  # struct place
ADDRESS = struct.Struct("=16sQ")  # struct address
STEP = struct.Struct("=I128s")  # struct step
EXCLUDED = 1 << 31
ADDRESSES = ("loopback", "host", "any")  # enum addresses
OWNER = struct.Struct("=I16s")  # struct owner
EVENT = struct.Struct("=QII6QI16sI16sII48s")  # struct event
EVENT_KINDS = ("active_established", "accelerated", "declined", "retired", "closed", "learned")
# enum lesson_kind; the last ones are for as long as samples say so
LESSON_KINDS = (
    "",
    "ulp",
    "rcvlowat",
    "zerocopy",
    "oobinline",
    "repair",
    "option",
    "splice",
    "waitall",
    "trunc",
    "oob",
    "woken",
    "fionread",
    "spills",
    "short connections",
    "early data",
)
PASSING_LESSONS = LESSON_KINDS[13:]
REQUEST_LEARNED, REQUEST_ULP = 1, 2  # enum request
OPENED = struct.Struct("=QI16s4x")  # struct opened
LISTENER = struct.Struct("=QI4x")  # struct listener
SAMPLING_SIZE = 40  # struct sampling: time, when last sampled, kind, and what is the datapath's own
LESSON = struct.Struct("=QQI20xQI16s4x")  # struct lesson, which begins with that
SHORTCUT = struct.Struct(f"=IIQ{SAMPLING_SIZE}s")  # struct shortcut
LOOK_IT_UP, KNOWN = 1, 2  # enum shortcut_state
VERDICT = struct.Struct("=48sI4x")  # struct verdict
VIEW = "7Q6I16s"  # struct view
CONNECTION = struct.Struct(f"=Q{VIEW}{VIEW}II8s48s32s")  # struct connection
MODES = ("unused", "redirected", "tcp")  # enum mode
BROKEN = 3  # struct member: to be reset
LEFT_UNREAD = 2  # struct member: the pair is off the sockhash, and has pollers to be told
SIDES = ("client", "server")  # enum side


@dataclass(frozen=True)
class MapShape:
    type: MapType
    key_size: int
    value_size: int
    max_entries: int


def map_shapes(max_connections: int, page_size: int) -> dict[str, MapShape]:
    """Every map of the datapath by its name, as it is made for a limit on connections."""
    return {
        "peers": MapShape(MapType.SOCKHASH, 12, 4, 2 * max_connections),
        "sockets": MapShape(MapType.SK_STORAGE, 4, 456, 0),
        "handshakes": MapShape(MapType.LRU_HASH, 8, 88, max_connections + DECLINED_CLIENTS),
        "answered": MapShape(MapType.ARRAY, 4, FLOW.size + 8, WORDS),
        "words": MapShape(MapType.ARRAY, 4, 32, WORDS),
        "unproven": MapShape(MapType.ARRAY, 4, 8 + FLOW.size, UNPROVEN),
        "own_addresses": MapShape(MapType.HASH, ADDRESS.size, 4, OWN_ADDRESSES),
        "excluded": MapShape(MapType.HASH, STEP.size, 4, EXCLUDED_STEPS),
        "leaving": MapShape(MapType.LRU_HASH, 8, 12, LEAVING_PAIRS),
        "unnoticed": MapShape(MapType.LRU_HASH, 12, 4, LEAVING_PAIRS),
        "callers": MapShape(MapType.LRU_HASH, FLOW.size, 32, TRACED_CONNECTIONS),
        "listeners": MapShape(MapType.LRU_HASH, LISTENER.size, OWNER.size, TRACED_CONNECTIONS),
        "closing": MapShape(MapType.LRU_HASH, 8, 32, TRACED_CONNECTIONS),
        "verdicts": MapShape(MapType.ARRAY, 4, VERDICT.size, VERDICTS),
        "learned": MapShape(MapType.HASH, LISTENER.size, LESSON.size, LESSONS),
        "shortcuts": MapShape(MapType.ARRAY, 4, SHORTCUT.size, SHORTCUTS),
        "balances": MapShape(MapType.LRU_HASH, LISTENER.size, 4, BALANCED_LISTENERS),
        "settings": MapShape(MapType.ARRAY, 4, SETTINGS.size, 1),
        "alerts": MapShape(MapType.ARRAY, 4, 8, 1),
        "ports": MapShape(MapType.ARRAY, 4, PORTS_SIZE, 1),
        "counters": MapShape(MapType.PERCPU_ARRAY, 4, 8 * COUNTER_SLOTS, 1),
        "line": MapShape(MapType.PERCPU_ARRAY, 4, CONNECTION.size, 1),
        "manifest": MapShape(MapType.ARRAY, 4, MANIFEST_SIZE, 1),
        "requests": MapShape(MapType.RINGBUF, 0, 0, page_size),
        "events": MapShape(MapType.RINGBUF, 0, 0, 64 * page_size),
    }


def hash_of(flow: bytes, seed: int) -> int:
    """sockredir.h: where an array has what is noted of a connection, modulo the array's size."""
    mixed = seed
    for word in struct.unpack("=6Q", flow):
        mixed = (mixed ^ mixed >> 32 ^ word) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    return mixed >> 32


@dataclass
class Settings:
    """struct settings: what the daemon tells the running programs."""

    stopped: int = 0
    stopped_in: int = 0
    epoch: int = 0
    window_bytes: int = 0
    trace: int = 0
    listing: int = 0
    addresses: int = 0  # index in ADDRESSES
    excludes: int = 0
    learn: int = 0
    ktls: int = 0
    trial: int = 0
    seed: int = 0

    def pack(self) -> bytes:
        return SETTINGS.pack(*astuple(self))

    @classmethod
    def unpack(cls, raw: bytes) -> Settings:
        return cls(*SETTINGS.unpack(raw))


@dataclass(frozen=True)
class Flow:
    """A connection's addresses, as the client sees them."""

    client: str
    server: str
    netns: int

    @classmethod
    def unpack(cls, raw: bytes) -> Flow:
        client, server, netns, client_port, server_port = FLOW.unpack(raw)
        return cls(_address(client, client_port), _address(server, server_port), netns)


_V4_MAPPED = bytes(10) + b"\xff\xff"


def _address(raw: bytes, port: int) -> str:
    if raw.startswith(_V4_MAPPED):
        return f"{raw[12]}.{raw[13]}.{raw[14]}.{raw[15]}:{port}"
    return f"[{IPv6Address(raw)}]:{port}"


def reason_name(counter: int) -> str:
    """The word for an enum counter that is a reason, e.g. 'peer_outside'."""
    return COUNTERS[counter].partition("_")[2]


def text(raw: bytes) -> str:
    """A C string."""
    return raw.partition(b"\0")[0].decode(errors="replace")


@dataclass(frozen=True)
class End:
    """One end of a connection in an event: its program, and what the direction from it carried."""

    pid: int  # 0: not known
    comm: str
    bytes: int
    messages: int
    tcp_bytes: int


@dataclass(frozen=True)
class Event:
    """struct event; `time` is CLOCK_MONOTONIC in ns, `reason` empty where there is none."""

    time: int
    kind: str
    reason: str
    flow: Flow
    client: End
    server: End
    cpu: int
    lost: int

    @classmethod
    def unpack(cls, raw: bytes) -> Event:
        time, kind, reason, *numbers, cpu, lost, flow = EVENT.unpack(raw)
        totals, (client_pid, client_comm, server_pid, server_comm) = numbers[:6], numbers[6:]
        name = EVENT_KINDS[kind]
        word = ""
        if name == "learned":
            word = LESSON_KINDS[reason]
        elif name in ("declined", "retired"):
            word = reason_name(reason)
        return cls(
            time,
            name,
            word,
            Flow.unpack(flow),
            End(client_pid, text(client_comm), *totals[:3]),
            End(server_pid, text(server_comm), *totals[3:]),
            cpu,
            lost,
        )
