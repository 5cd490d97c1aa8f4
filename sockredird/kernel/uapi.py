"""Constants and structures of include/uapi/linux/bpf.h that the daemon uses."""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_uint8, c_uint32, c_uint64
from enum import IntEnum


class MapType(IntEnum):
    """enum bpf_map_type: the types that the datapath uses."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    ARRAY_OF_MAPS = 12
    SOCKHASH = 18
    SK_STORAGE = 24
    RINGBUF = 27


class ProgType(IntEnum):
    """enum bpf_prog_type."""

    SCHED_CLS = 3
    SOCK_OPS = 13
    SK_MSG = 16
    CGROUP_SOCKOPT = 25
    TRACING = 26


class AttachType(IntEnum):
    """enum bpf_attach_type."""

    CGROUP_INET_INGRESS = 0
    NONE = 0  # of programs that are not attached
    CGROUP_INET_EGRESS = 1
    CGROUP_SOCK_OPS = 3
    SK_MSG_VERDICT = 7
    CGROUP_SETSOCKOPT = 22
    TRACE_FENTRY = 24
    TRACE_FEXIT = 25
    TRACE_ITER = 28


class LinkType(IntEnum):
    """enum bpf_link_type."""

    TRACING = 2
    CGROUP = 3
    ITER = 4


class ProgInfo(ctypes.Structure):
    """The head of struct bpf_prog_info. The kernel fills as much of it as there is room for."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * 16),
    ]


class MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_char * 16),
    ]


class CgroupLink(ctypes.Structure):
    _fields_ = [("cgroup_id", c_uint64), ("attach_type", c_uint32)]


class IterLink(ctypes.Structure):
    _fields_ = [("target_name", c_uint64), ("target_name_len", c_uint32), ("map_id", c_uint32)]


class LinkDetail(ctypes.Union):
    _fields_ = [("cgroup", CgroupLink), ("iter", IterLink), ("size", c_char * 32)]


class LinkInfo(ctypes.Structure):
    """The head of struct bpf_link_info."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("_detail_align", c_uint32),
        ("detail", LinkDetail),
    ]
