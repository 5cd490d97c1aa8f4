"""SMC on a TCP socket: the one upper layer protocol that is there before the connection is."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from shell import sh
from status import counters

TCP_ULP = 31  # <linux/tcp.h>


def has_smc() -> bool:
    """Kernels come without the module, or with one that is no ULP (6.12.117)."""
    sh("modprobe smc || true")
    return "smc" in Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()


@pytest.mark.skipif(
    os.uname().release.startswith("6.1."),
    reason="the kernel crashes: TCP_ULP smc takes the file from under setsockopt(2) of a thread",
)
def test_smc_socket_is_declined(enabled: None) -> None:
    if not has_smc():
        pytest.skip("this kernel has no ULP smc")
    before = counters()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"smc")
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            client.sendall(b"request")
            assert server.recv(7) == b"request"
            server.sendall(b"answer")
            assert client.recv(6) == b"answer"
            port = listener.getsockname()[1]
            answers = json.loads(sh(f"sockredirctl explain --port {port} --json"))
    after = counters()
    assert after["declined_ulp"] == before["declined_ulp"] + 1
    assert after["redirected_messages"] == before["redirected_messages"]
    assert "ulp" in {answer["reason"] for answer in answers if answer["kind"] == "connection"}
