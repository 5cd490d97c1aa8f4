"""What the daemon does with libbpf.so.1: its functions with Python's types, and OSError.

libbpf 1.x returns -errno from integer calls and NULL with errno set from pointer calls
(libbpf_set_strict_mode() history, libbpf 1.0 release notes). File descriptors are wrapped in
`Fd`, which closes them.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from ctypes import c_uint32
from pathlib import Path
from types import TracebackType

from sockredird.kernel import capabilities
from sockredird.kernel.libbpf_prototypes import (
    LinkCreateOpts,
    MapCreateOpts,
    ProgLoadOpts,
    TestRunOpts,
    lib,
)
from sockredird.kernel.uapi import AttachType, LinkInfo, MapInfo, MapType, ProgInfo, ProgType

_INSN_SIZE = 8  # struct bpf_insn
_ETHERNET_HEADER = 14  # bytes: no packet is shorter
_QUERY_EFFECTIVE = 1  # BPF_F_QUERY_EFFECTIVE
_LOG_SIZE = 1 << 20
_LOG_STATS = 4  # BPF_LOG_STATS, linux/bpf_verifier.h: the verifier's last words alone
_BTF_INT_SIGNED = 1  # include/uapi/linux/btf.h
KEYS_TRIES = 10


def check(result: int, what: str) -> int:
    if result < 0:
        hint = capabilities.hint() if -result == errno.EPERM else ""
        raise OSError(-result, f"{what}: {os.strerror(-result)}{hint}")
    return result


class Fd:
    """A file descriptor that is closed with this object."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        return self.number

    def close(self) -> None:
        if self.number >= 0:
            os.close(self.number)
            self.number = -1

    def __enter__(self) -> Fd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def open_pin(path: Path) -> Fd:
    """Opens a pinned program, map or link. Raises OSError; EACCES if `path` is not a BPF object."""
    return Fd(check(lib.bpf_obj_get(os.fsencode(path)), f"open {path}"))


def pin(fd: Fd, path: Path) -> None:
    check(lib.bpf_obj_pin(fd.number, os.fsencode(path)), f"pin {path}")


def object_kind(fd: Fd) -> str:
    """'prog', 'map' or 'link', from the name of the anonymous inode behind the descriptor."""
    target = str(Path(f"/proc/self/fd/{fd.number}").readlink())
    for kind in ("prog", "map", "link"):
        if target.startswith(f"anon_inode:bpf-{kind}") or target == f"anon_inode:bpf_{kind}":
            return kind
    return target


def _info(fd: Fd, info: ctypes.Structure, what: str) -> None:
    size = c_uint32(ctypes.sizeof(info))
    check(
        lib.bpf_obj_get_info_by_fd(fd.number, ctypes.byref(info), ctypes.byref(size)),
        f"read {what} info",
    )


def prog_info(fd: Fd) -> ProgInfo:
    info = ProgInfo()
    _info(fd, info, "program")
    return info


def prog_tag(fd: Fd) -> str:
    """The kernel's hash over a program's instructions, in hex."""
    return bytes(prog_info(fd).tag).hex()


def prog_map_ids(fd: Fd) -> set[int]:
    """Ids of the maps that a program uses."""
    count = prog_info(fd).nr_map_ids
    ids = (c_uint32 * max(count, 1))()
    info = ProgInfo(nr_map_ids=count, map_ids=ctypes.addressof(ids))
    _info(fd, info, "program")
    return set(ids[:count])


def map_info(fd: Fd) -> MapInfo:
    info = MapInfo()
    _info(fd, info, "map")
    return info


def link_info(fd: Fd) -> LinkInfo:
    info = LinkInfo()
    _info(fd, info, "link")
    return info


def create_map(info: MapInfo) -> Fd:
    """Creates a map with the type, sizes, flags and name of `info`. Raises OSError."""
    options = MapCreateOpts(sz=ctypes.sizeof(MapCreateOpts), map_flags=info.map_flags)
    with ExitStack() as stack:
        if info.type == MapType.SK_STORAGE:
            types = stack.enter_context(_storage_types(info.value_size))
            options.btf_fd, options.btf_key_type_id, options.btf_value_type_id = types.number, 1, 2
        created = lib.bpf_map_create(
            info.type,
            info.name,
            info.key_size,
            info.value_size,
            info.max_entries,
            ctypes.byref(options),
        )
    return Fd(check(created, f"create map {info.name.decode()}"))


def _storage_types(value_size: int) -> Fd:
    """The BTF that the kernel requires of socket storage: type 1 is the key, and type 2 the value.

    The key has to be an int, and the value any type of that size
    (bpf_local_storage_map_check_btf(), kernel/bpf/bpf_local_storage.c).
    """
    btf = lib.btf__new_empty()
    if not btf:
        raise OSError(ctypes.get_errno(), "make BTF")
    try:
        check(lib.btf__add_int(btf, b"int", 4, _BTF_INT_SIGNED), "make BTF")
        check(lib.btf__add_struct(btf, b"value", value_size), "make BTF")
        size = c_uint32()
        data = lib.btf__raw_data(btf, ctypes.byref(size))
        return Fd(check(lib.bpf_btf_load(data, size.value, None), "load BTF"))
    finally:
        lib.btf__free(btf)


def load_program(
    kind: ProgType, name: str, code: bytes, attach_type: int = 0, target: int = 0
) -> Fd:
    """Loads a program. `target` is the BTF id of the kernel function that a tracing program is for.

    Raises OSError; the verifier's messages, if there are any, are its `__notes__`.
    """
    log = ctypes.create_string_buffer(_LOG_SIZE)
    options = ProgLoadOpts(
        sz=ctypes.sizeof(ProgLoadOpts),
        expected_attach_type=attach_type,
        attach_btf_id=target,
        # libbpf fills it by a second attempt if the first fails (bpf_prog_load(), bpf.c)
        log_size=len(log),
        log_buf=ctypes.addressof(log),
    )
    arguments = (kind, name.encode(), b"GPL", code, len(code) // _INSN_SIZE, ctypes.byref(options))
    loaded = lib.bpf_prog_load(*arguments)
    if loaded == -errno.ENOSPC:
        # before Linux 6.4 a log that is full stays as it is, and hides the cause
        options.log_level = _LOG_STATS
        loaded = lib.bpf_prog_load(*arguments)
    try:
        return Fd(check(loaded, f"load program {name}"))
    except OSError as error:
        if log.value:
            error.add_note(log.value.decode(errors="replace"))
        raise


def lookup(fd: Fd, key: bytes, value_size: int) -> bytes:
    """The value of a key. For per-CPU maps `value_size` is the sum over all possible CPUs."""
    value = ctypes.create_string_buffer(value_size)
    check(lib.bpf_map_lookup_elem(fd.number, key, value), "map lookup")
    return value.raw


def update(fd: Fd, key: bytes, value: bytes) -> None:
    check(lib.bpf_map_update_elem(fd.number, key, value, 0), "map update")


def delete(fd: Fd, key: bytes) -> None:
    check(lib.bpf_map_delete_elem(fd.number, key), "map delete")


def keys(fd: Fd, key_size: int) -> list[bytes]:
    """The keys of a hash map. One that is added or deleted meanwhile may be in the list or not.

    Raises OSError; EAGAIN if the map changes faster than it can be read.
    """
    following = ctypes.create_string_buffer(key_size)
    for _ in range(KEYS_TRIES):
        found: dict[bytes, None] = {}
        before: bytes | None = None
        # if `before` was deleted meanwhile, the kernel begins again, and so do we
        while before not in found:
            if before is not None:
                found[before] = None
            result = lib.bpf_map_get_next_key(fd.number, before, following)
            if result == -errno.ENOENT:
                return list(found)
            check(result, "map keys")
            before = following.raw
    raise OSError(errno.EAGAIN, "map keys: they keep changing")


def each_key(fd: Fd, key_size: int) -> Iterator[bytes]:
    """The keys of a hash map that changes all the time, each once.

    One that is added or deleted meanwhile may be missing. Raises OSError.
    """
    following = ctypes.create_string_buffer(key_size)
    found: set[bytes] = set()
    way: list[bytes] = []  # that led here, as far as it is not known to be gone
    while True:
        result = lib.bpf_map_get_next_key(fd.number, way[-1] if way else None, following)
        if result == -errno.ENOENT:
            return
        check(result, "map keys")
        if following.raw not in found:
            found.add(following.raw)
            way.append(following.raw)
            yield following.raw
        elif way:  # the last one was deleted, so the kernel has begun again
            way.pop()
        else:
            return


def test_run(prog: Fd, times: int) -> None:
    """Runs a program for packets so often, with an empty packet. Raises OSError.

    InterruptedError after fewer runs, if a signal came (bpf_test_run(), net/bpf/test_run.c).
    """
    packet = bytes(_ETHERNET_HEADER)
    options = TestRunOpts(
        sz=ctypes.sizeof(TestRunOpts), data_in=packet, data_size_in=len(packet), repeat=times
    )
    check(lib.bpf_prog_test_run_opts(prog.number, ctypes.byref(options)), "test run")


def possible_cpus() -> int:
    return check(lib.libbpf_num_possible_cpus(), "count CPUs")


def attach_sk_msg(prog: Fd, sockhash: Fd) -> None:
    check(
        lib.bpf_prog_attach(prog.number, sockhash.number, AttachType.SK_MSG_VERDICT, 0),
        "attach sk_msg program to sockhash",
    )


def attached_sk_msg(sockhash: Fd) -> int | None:
    """Id of the sk_msg program of a sockhash, or None (sock_map_bpf_prog_query(), Linux 5.17)."""
    ids = _attached(sockhash, AttachType.SK_MSG_VERDICT)
    return ids[0] if ids else None


def attached_to_cgroup(cgroup: Fd, kind: AttachType) -> list[int]:
    """Ids of the programs attached to the cgroup itself."""
    return _attached(cgroup, kind)


def effective_on_cgroup(cgroup: Fd, kind: AttachType) -> list[int]:
    """Ids of the programs that sockets in the cgroup run, those of cgroups above included."""
    return _attached(cgroup, kind, _QUERY_EFFECTIVE)


def _attached(target: Fd, kind: AttachType, flags: int = 0) -> list[int]:
    ids = (c_uint32 * 64)()  # as many as a cgroup takes (BPF_CGROUP_MAX_PROGS)
    count = c_uint32(len(ids))
    result = lib.bpf_prog_query(target.number, kind, flags, None, ids, ctypes.byref(count))
    check(result, "query attached programs")
    return list(ids[: count.value])


def prog_exists(prog_id: int) -> bool:
    return _exists(lib.bpf_prog_get_fd_by_id(prog_id))


def map_exists(map_id: int) -> bool:
    return _exists(lib.bpf_map_get_fd_by_id(map_id))


def _exists(fd: int) -> bool:
    if fd < 0:
        return False
    os.close(fd)
    return True


def create_cgroup_link(prog: Fd, cgroup: Fd, attach_type: AttachType) -> Fd:
    """Attaches a program to a cgroup, in addition to those that it has. Raises OSError."""
    link = lib.bpf_link_create(prog.number, cgroup.number, attach_type, None)
    return Fd(check(link, f"attach {attach_type.name} program to cgroup"))


def create_tracing_link(prog: Fd, attach_type: AttachType) -> Fd:
    """Attaches an fentry or fexit program to the function that it was loaded for."""
    link = lib.bpf_link_create(prog.number, 0, attach_type, None)
    return Fd(check(link, f"attach {attach_type.name} program"))


def create_iterator_link(prog: Fd, over: Fd | None = None) -> Fd:
    """The link of an iterator, over the elements of the map `over` if there is one. Raises OSError.

    open_iterator(), or opening its pin, gives a file to read from.
    """
    if over is None:  # the program iterates over something other than a map
        link = lib.bpf_link_create(prog.number, 0, AttachType.TRACE_ITER, None)
        return Fd(check(link, "create iterator"))
    info = c_uint32(over.number)  # union bpf_iter_link_info.map.map_fd
    options = LinkCreateOpts(
        sz=ctypes.sizeof(LinkCreateOpts),
        iter_info=ctypes.addressof(info),
        iter_info_len=ctypes.sizeof(info),
    )
    link = lib.bpf_link_create(prog.number, 0, AttachType.TRACE_ITER, ctypes.byref(options))
    return Fd(check(link, "create iterator"))


def open_iterator(link: Fd) -> Fd:
    """A file with the iterator's output. Reading it to its end visits every object once."""
    return Fd(check(lib.bpf_iter_create(link.number), "open iterator"))


def read_iterator(iterator: Fd) -> bytes:
    """The next whole records of an iterator's output; empty at its end."""
    while True:
        try:
            return os.read(iterator.number, 1 << 16)
        except BlockingIOError:
            # after a million objects without output (MAX_ITER_OBJECTS, kernel/bpf/bpf_iter.c)
            continue


def iterate(prog: Fd) -> Iterator[bytes]:
    """Runs an iterator once, over all there is. Yields its whole records, several at a time."""
    with create_iterator_link(prog) as link, open_iterator(link) as lines:
        while chunk := read_iterator(lines):
            yield chunk


def wait_for_programs() -> None:
    """Waits until every run of a BPF program that had begun before this call has ended.

    Updating a map of maps waits for an RCU grace period before it returns, on every kernel
    configuration (maybe_wait_bpf_programs(), kernel/bpf/syscall.c).
    """
    inner_fd = lib.bpf_map_create(MapType.ARRAY, b"grace", 4, 4, 1, None)
    with Fd(check(inner_fd, "create map")) as inner:
        options = MapCreateOpts(sz=ctypes.sizeof(MapCreateOpts), inner_map_fd=inner.number)
        outer_fd = lib.bpf_map_create(
            MapType.ARRAY_OF_MAPS, b"grace", 4, 4, 1, ctypes.byref(options)
        )
        with Fd(check(outer_fd, "create map of maps")) as outer:
            update(outer, bytes(4), inner.number.to_bytes(4, "little"))
