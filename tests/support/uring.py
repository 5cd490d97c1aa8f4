"""io_uring(7) by its system calls: one submission at a time, buffers kept alive until it ends."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import Any

_SETUP, _ENTER = 425, 426
_ENTER_GETEVENTS = 1
_OFF_SQES = 0x10000000
_ENTRIES = 8
_SQE_SIZE, _CQE_SIZE = 64, 16
_libc = ctypes.CDLL(None, use_errno=True)

# enum io_uring_op
POLL_ADD, SENDMSG, RECVMSG, ACCEPT, CONNECT = 6, 9, 10, 13, 16
READ, WRITE, SEND, RECV, SPLICE, PROVIDE_BUFFERS, SHUTDOWN, SEND_ZC = 22, 23, 26, 27, 30, 31, 34, 47
# flags
RECV_MULTISHOT = 1 << 1  # in ioprio
SQE_BUFFER_SELECT = 1 << 5
CQE_F_BUFFER, CQE_F_MORE, CQE_F_NOTIF = 1, 2, 8


def _syscall(*arguments: Any) -> int:
    result = int(_libc.syscall(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "io_uring")
    return result


def address(buffer: Any) -> int:
    """Of a ctypes object."""
    return ctypes.addressof(buffer)


class Ring:
    """Raises OSError where the kernel refuses io_uring."""

    def __init__(self) -> None:
        params = ctypes.create_string_buffer(120)  # struct io_uring_params
        self.fd = _syscall(_SETUP, _ENTRIES, params)
        sq_entries, cq_entries = struct.unpack_from("II", params, 0)
        # struct io_sqring_offsets at 40: head, tail, ring_mask, ring_entries, flags, dropped, array
        _, self._sq_tail, _, _, _, _, self._array = struct.unpack_from("7I", params, 40)
        # struct io_cqring_offsets at 80: head, tail, ring_mask, ring_entries, overflow, cqes
        self._cq_head, self._cq_tail, _, _, _, self._cqes = struct.unpack_from("6I", params, 80)
        # since 5.4 both rings are one mapping (IORING_FEAT_SINGLE_MMAP)
        size = max(self._array + 4 * sq_entries, self._cqes + _CQE_SIZE * cq_entries)
        self._ring = mmap.mmap(self.fd, size, offset=0)
        self._sqes = mmap.mmap(self.fd, _SQE_SIZE * sq_entries, offset=_OFF_SQES)
        self._sq_mask, self._cq_mask = sq_entries - 1, cq_entries - 1

    def _get(self, offset: int) -> int:
        return int(struct.unpack_from("I", self._ring, offset)[0])

    def submit(
        self,
        operation: int,
        fd: int,
        where: int = 0,
        length: int = 0,
        *,
        offset: int = 0,
        flags: int = 0,
        priority: int = 0,
        sqe_flags: int = 0,
        splice_fd: int = 0,
        group: int = 0,
        mark: int = 0,
    ) -> None:
        """`flags` are those of the operation; `mark` comes back with its completion."""
        tail = self._get(self._sq_tail)
        index = tail & self._sq_mask
        entry = struct.pack(
            "=BBHiQQIIQHHiQQ",
            operation,
            sqe_flags,
            priority,
            fd,
            offset,
            where,
            length,
            flags,
            mark,
            group,
            0,
            splice_fd,
            0,
            0,
        )
        self._sqes[index * _SQE_SIZE : (index + 1) * _SQE_SIZE] = entry
        struct.pack_into("I", self._ring, self._array + 4 * index, index)
        struct.pack_into("I", self._ring, self._sq_tail, tail + 1)
        _syscall(_ENTER, self.fd, 1, 0, 0, None, 0)

    def completion(self) -> tuple[int, int, int]:
        """Waits for the next: its mark, result (negative errno) and flags."""
        head = self._get(self._cq_head)
        while head == self._get(self._cq_tail):
            _syscall(_ENTER, self.fd, 0, 1, _ENTER_GETEVENTS, None, 0)
        at = self._cqes + _CQE_SIZE * (head & self._cq_mask)
        mark, result, flags = struct.unpack_from("=QiI", self._ring, at)
        struct.pack_into("I", self._ring, self._cq_head, head + 1)
        return mark, result, flags

    def close(self) -> None:
        self._ring.close()
        self._sqes.close()
        os.close(self.fd)
