"""Resets a connection if a program asked it for what can only go wrong, see bpf/leave/detect.c.

SOCK_DESTROY of sock_diag(7) aborts the other end. Its RST gives the program that asked ECONNRESET,
as from any peer; the program at the other end gets ECONNABORTED.
"""

from __future__ import annotations

import logging

from sockredird.datapath.members import Walked
from sockredird.errors import FewLines
from sockredird.kernel import sockdiag
from sockredird.kernel.addresses import netns_cookie
from sockredird.kernel.sockdiag import Address
from sockredird.loader.records import FLOW, Flow, ip_bytes

log = logging.getLogger(__name__)


class Resets:
    def __init__(self) -> None:
        self._told: frozenset[tuple[bytes, int]] = frozenset()
        self._lines = FewLines(log)

    def then_done(self, walked: Walked) -> bool:
        """Resets what a walk found broken. Returns whether nothing else is leaving."""
        for flow, side in walked.broken:
            error = _reset(flow, side)
            if (flow, side) not in self._told:
                ends = Flow.unpack(flow)
                what = f"cannot be reset ({error}) and may hang" if error else "was reset"
                self._lines.warning(
                    "%s -> %s %s: a program used splice(2) or FIONREAD, see sockredird(8)",
                    *(ends.client, ends.server, what),
                )
        self._told = walked.broken
        return walked.leaving == 0 and walked.unsettled == 0


def _reset(flow: bytes, side: int) -> str:
    """Resets a connection broken at this side. Returns why it cannot be; empty if it was."""
    ends = FLOW.unpack(flow)
    if ends.netns != netns_cookie():
        return "it is in another network namespace"
    local = ip_bytes(ends.client_ip), ends.client_port
    remote = ip_bytes(ends.server_ip), ends.server_port
    if side == 0:  # the client asked: the server's end goes
        local, remote = remote, local
    try:
        sockdiag.destroy(*local, *remote)
    except OSError as error:
        return str(error)
    return ""


def reset_connection(client: Address, server: Address, netns: int) -> str:
    """Resets a connection, whatever it has unread. Returns why it cannot be; empty if it was.

    It aborts the client's end, or the server's if the client has closed. `netns` is a cookie.
    """
    if netns != netns_cookie():
        return "it is in another network namespace"
    error = ""
    for local, remote in ((client, server), (server, client)):
        try:
            sockdiag.destroy(local.packed, local.port, remote.packed, remote.port)
            return ""
        except OSError as failure:
            error = error or str(failure)
    return error
