"""Offsets of the kernel fields that the datapath reads, as -D flags for the BPF compiler."""

from __future__ import annotations

from sockredird.errors import UnsupportedKernel
from sockredird.loader.btf import Field, KernelTypes
from sockredird.loader.objects import RDONLY_CAST

# Struct and path, named OFF_<struct>_<last component> in the C source.
_REQUIRED = (
    ("list_head", "next"),
    ("sock", "sk_lock.owned"),
    ("sock", "sk_write_pending"),
    ("sock", "sk_sndbuf"),
    ("sock", "sk_lingertime"),
    ("sock", "sk_max_pacing_rate"),
    ("sock", "sk_filter"),
    ("sock", "__sk_common.skc_prot"),
    ("sock", "__sk_common.skc_net.net"),
    ("proto", "memory_pressure"),
    ("socket", "file"),
    ("file", "f_flags"),
    ("sock", "__sk_common.skc_family"),
    ("sock", "__sk_common.skc_num"),
    ("sock", "__sk_common.skc_dport"),
    ("sock", "__sk_common.skc_rcv_saddr"),
    ("sock", "__sk_common.skc_daddr"),
    ("sock", "__sk_common.skc_v6_rcv_saddr"),
    ("sock", "__sk_common.skc_v6_daddr"),
    ("net", "net_cookie"),
    ("inet_connection_sock", "icsk_ack.lrcvtime"),
    ("tcp_sock", "copied_seq"),
    ("tcp_sock", "snd_una"),
    ("tcp_sock", "bytes_received"),
    ("tcp_sock", "data_segs_out"),
    ("tcp_sock", "data_segs_in"),
    ("tcp_sock", "lsndtime"),
    ("tcp_sock", "rcv_nxt"),
    ("tcp_sock", "urg_data"),
    ("tcp_sock", "urg_seq"),
    ("tcp_sock", "notsent_lowat"),
    ("sock", "sk_user_data"),
    ("sock", "sk_shutdown"),
    ("sock", "sk_err"),
    ("sock", "sk_receive_queue"),
    ("sock", "sk_rcvlowat"),
    ("sock", "sk_rcvtimeo"),
    ("msghdr", "msg_flags"),
    ("sock", "sk_wq"),
    ("sock", "sk_rcvbuf"),
    ("sock", "sk_rcvlowat"),
    ("sock", "sk_tsflags"),
    ("sock", "sk_peek_off"),
    ("sock", "sk_userlocks"),
    ("sock", "sk_kern_sock"),
    ("sock", "__sk_common.skc_flags"),
    ("sock", "__sk_common.skc_refcnt"),
    ("sock", "__sk_common.skc_state"),
    ("sock", "sk_socket"),
    ("sock", "sk_uid"),
    ("sock", "sk_protocol"),
    ("sock", "sk_cgrp_data"),
    ("sock_cgroup_data", "cgroup"),
    ("cgroup", "kn"),
    ("kernfs_node", "id"),
    ("socket", "sk"),
    ("socket_alloc", "vfs_inode"),
    ("inode", "i_ino"),
    ("task_struct", "tgid"),
    ("task_struct", "comm"),
    ("task_struct", "stack"),
    ("sk_psock", "sk"),
    ("sk_psock", "ingress_msg"),
    ("sk_psock", "refcnt"),
    ("sk_psock", "saved_data_ready"),
    ("sk_msg", "list"),
    ("sk_msg", "sg.size"),
    ("socket_wq", "wait.head"),
    ("wait_queue_entry", "private"),
    ("wait_queue_entry", "entry"),
    ("task_struct", "group_leader"),
    ("inet_connection_sock", "icsk_ulp_ops"),
    ("inet_connection_sock", "icsk_user_timeout"),
    ("tcp_sock", "write_seq"),
    ("tcp_sock", "tcp_tx_delay"),
    ("tcp_sock", "bytes_acked"),
    ("tcp_sock", "repair"),
    ("tcp_sock", "recvmsg_inq"),
)
# Needed by exclude_cgroups.
_EXCLUDING = (("cgroup", "level"), ("cgroup", "ancestors"), ("kernfs_node", "name"))
# Missing if the kernel was built without the feature, or is older than the field.
_OPTIONAL = (
    ("sk_psock", "msg_tot_len"),  # 6.6.128, 6.12.75, 6.18.14, 7.0
    ("tcp_sock", "is_mptcp"),  # CONFIG_MPTCP
    ("tcp_sock", "syn_smc"),  # CONFIG_SMC
    ("sock", "sk_memcg"),  # CONFIG_MEMCG
    ("page_counter", "usage"),
    ("page_counter", "max"),
    ("page_counter", "parent"),
    ("mem_cgroup", "memory"),
    ("mem_cgroup", "nodeinfo"),
    ("mem_cgroup_per_node", "lru_zone_size"),
    ("mem_cgroup_per_node", "lruvec.lrugen.nr_pages"),  # CONFIG_LRU_GEN
    ("mem_cgroup", "tcpmem"),  # CONFIG_MEMCG_V1
    ("net", "ct.nf_ct_proto.tcp.timeouts"),  # CONFIG_NF_CONNTRACK
    *_EXCLUDING,
)
# Structs that kernel.h reads through bpf_rdonly_cast(), where the kernel has it.
_CAST = (
    *("sock", "inet_connection_sock", "tcp_sock", "sk_psock", "task_struct"),
    *("wait_queue_entry", "list_head", "proto", "page_counter", "sk_msg"),
)
# An armed timer holds a reference to its socket. Kernels have different timers: 6.12.117 has one
# for keepalive that 6.12.107 does not have, and 6.19 moved two.
_WITH_TIMERS = ("sock", "inet_connection_sock", "tcp_sock")


_SOCK_FLAGS = (
    *("SOCK_DONE", "SOCK_ZEROCOPY", "SOCK_URGINLINE", "SOCK_RCVTSTAMP"),
    *("SOCK_LINGER", "SOCK_TXTIME"),
)


# By which mem_cgroup_per_node.lru_zone_size is indexed.
_LRU_SIZES = (
    *(("zone_type", "__MAX_NR_ZONES"), ("lru_list", "NR_LRU_LISTS")),
    ("lru_list", "LRU_INACTIVE_FILE"),
)


def _flags(struct: str, path: str, field: Field) -> list[str]:
    name = f"{struct}_{path.rpartition('.')[2]}"
    return [
        f"-DOFF_{name}={field.offset}",
        f"-DMASK_{name}={field.mask}",
        f"-DSHIFT_{name}={field.shift}",
    ]


def compiler_flags(kernel: KernelTypes) -> list[str]:
    """The -D flags for this kernel.

    Raises UnsupportedKernel, naming the field, if one that the datapath needs is missing.
    """
    flags: list[str] = []
    for struct, path in _REQUIRED:
        field = kernel.field(struct, path)
        if field is None:
            raise UnsupportedKernel(
                f"the kernel's struct {struct} has no field {path}: Linux 6.1 or later is needed"
            )
        flags += _flags(struct, path, field)
    for struct, path in _OPTIONAL:
        field = kernel.field(struct, path)
        if field is not None:
            flags += _flags(struct, path, field)
    timers = {at for s in _WITH_TIMERS for at in kernel.offsets(s, "timer_list")}
    pprev = kernel.field("timer_list", "entry.pprev")
    sock_flags = {name: kernel.enumerator("sock_flags", name) for name in _SOCK_FLAGS}
    if pprev is None or None in sock_flags.values() or not timers:
        raise UnsupportedKernel(
            "the kernel's BTF lacks struct timer_list or enum sock_flags; "
            "Linux 6.1 or later is needed"
        )
    flags += ["-DEACH_TIMER(do,sk)=" + "+".join(f"do(sk,{at})" for at in sorted(timers))]
    flags += [f"-DBIT_{name}={bit}" for name, bit in sock_flags.items()]
    flags += [f"-DOFF_timer_list_pprev={pprev.offset}"]
    for enum, name in _LRU_SIZES:
        number = kernel.enumerator(enum, name)
        if number is not None:
            flags += [f"-DNR_{name.removeprefix('__')}={number}"]
    flags += _cast_flags(kernel)
    for function in ("tcp_bpf_recvmsg", "tcp_bpf_ioctl"):
        arguments = kernel.arguments(function)
        if arguments is not None:
            flags += [f"-DARGS_{function}={arguments}"]
    return flags


def _cast_flags(kernel: KernelTypes) -> list[str]:
    """What the programs need to call bpf_rdonly_cast(); nothing before Linux 6.2."""
    if kernel.function("bpf_rdonly_cast") is None:
        return []
    ids = {name: kernel.struct(name) for name in _CAST}
    return [f"-DRDONLY_CAST={RDONLY_CAST}", *(f"-DID_{name}={n}" for name, n in ids.items())]


def absent() -> list[str]:
    """The optional fields that this kernel does not have, such as 'sk_psock.msg_tot_len'."""
    kernel = KernelTypes()
    try:
        return [f"{s}.{path}" for s, path in _OPTIONAL if kernel.field(s, path) is None]
    finally:
        kernel.close()


def can_exclude_cgroups() -> bool:
    """Whether the kernel has the fields by which the datapath finds the ancestors of a cgroup."""
    return not {f"{struct}.{path}" for struct, path in _EXCLUDING} & {*absent()}
