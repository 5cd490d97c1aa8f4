"""A program whose reader sleeps inside recv() while its cgroup is frozen; run in an Actor."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from support.traffic import connect, listen

LONG_ENOUGH_S = 0.3  # to sleep, to be frozen, to be thawed: nothing announces these


def recv_while_frozen(cgroup: str) -> str:
    """What a recv() gives that is frozen and thawed (docker pause), and then sent data."""
    frozen = Path(cgroup) / f"frozen-{os.getpid()}"
    frozen.mkdir()
    with listen() as listener:
        both = connect(listener)
    for sender, reader in ((both.client, both.server), (both.server, both.client)):
        sender.sendall(b"w")
        assert reader.recv(1) == b"w"
    time.sleep(LONG_ENOUGH_S)  # the daemon decides in milliseconds, or more on a busy machine
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        (frozen / "cgroup.procs").write_text(str(os.getpid()))
        os.write(write_end, _received(both.server).encode())
        os._exit(0)
    time.sleep(LONG_ENOUGH_S)
    for state in ("1", "0"):
        (frozen / "cgroup.freeze").write_text(state)
        time.sleep(LONG_ENOUGH_S)
    both.client.sendall(b"data")
    outcome = os.read(read_end, 100).decode()
    os.waitpid(child, 0)
    both.close()
    frozen.rmdir()
    return outcome


def _received(sock: socket.socket) -> str:
    try:
        return repr(sock.recv(10))
    except OSError as error:
        return os.strerror(error.errno or 0)
