"""What the processors of the datapath do to each other without a lock, as litmus tests.

A protocol has a thread for each side, with the accesses that matter and the barriers that these
need, by where they are in sockredird/bpf/. What one side is of the kernel has the order that the
kernel gives it: a reference is given back with a release, and locks that are let go and then taken
order all of memory.
"""

from __future__ import annotations

from unit.bpf.announcing import ANNOUNCING
from unit.bpf.looking import LOOKING
from unit.bpf.pairing import PAIRING
from unit.bpf.protocol import Protocol
from unit.bpf.walking import WALKING

PROTOCOLS: dict[str, Protocol] = {**PAIRING, **ANNOUNCING, **LOOKING, **WALKING}
