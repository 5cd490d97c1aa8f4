"""fentry and fexit programs, on kernels with ftrace, that see what no setsockopt(2) announces.

    detector-<name>    a link, which holds its program

What a kernel cannot load or attach is left out and named in the log; the rest works without.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sockredird.datapath.links import refuse
from sockredird.kernel import libbpf
from sockredird.kernel.uapi import LinkType
from sockredird.loader.shapes import DETECTOR_PREFIX, DETECTORS, detector_pin

log = logging.getLogger(__name__)

FIONREAD = "fionread_answer"  # puts right what FIONREAD answers
# With these, a direction begins only after its reader has read by a call that a member serves.
LATE = frozenset({"splice", "recv"})
# What a user knows of what they see; that of FIONREAD is shown by a probe of its own.
_SEEN = {
    "splice": "splice(2)",
    "recv": "MSG_WAITALL, MSG_TRUNC and MSG_OOB in recv(2)",
    "received": "an interrupted recv(2)",
    "send": "MSG_OOB in send(2)",
}


def seen(attached: Collection[str]) -> tuple[list[str], list[str]]:
    """What is noticed with those attached, and what is not."""
    return (
        [what for name, what in _SEEN.items() if name in attached],
        [what for name, what in _SEEN.items() if name not in attached],
    )


def is_detector(name: str) -> bool:
    """Whether a pin of this name is one of ours."""
    return name.startswith(DETECTOR_PREFIX) and name.removeprefix(DETECTOR_PREFIX) in DETECTORS


def attach(directory: Path) -> dict[str, int]:
    """Attaches the programs that could be loaded, and pins the links in their place.

    Returns the ids of the programs by name. Raises OSError.
    """
    attached = {}
    for name, shape in DETECTORS.items():
        path = directory / detector_pin(name)
        if not path.exists():
            continue
        with libbpf.open_pin(path) as program:
            path.unlink()
            if name == "fionread" and FIONREAD in attached:
                continue
            try:
                link = libbpf.create_tracing_link(program, shape.attach_type)
            except OSError as error:
                log.debug("no detector %s: %s", name, error)
                continue
            with link:
                libbpf.pin(link, path)
            attached[name] = int(libbpf.prog_info(program).id)
    if missing := seen(attached)[1]:
        log.info(
            "this kernel lacks ftrace or BTF, so these are not seen on accelerated sockets: %s; "
            "leave programs that use them out of scope, see sockredird(8), LIMITATIONS",
            "; ".join(missing),
        )
    if FIONREAD in attached:
        log.info("what FIONREAD answers on accelerated sockets is put right: it counts all")
    return attached


def check(directory: Path, manifest: dict[str, Any]) -> None:
    """Raises LoadFailed unless the detectors are those that were attached, or OSError."""
    made = manifest["detectors"]
    for name in DETECTORS:
        path = directory / detector_pin(name)
        if path.exists() != (name in made):
            found, expected = ("a pin", "none") if path.exists() else ("no pin", "one")
            raise refuse(path, found, expected)
        if name not in made:
            continue
        with libbpf.open_pin(path) as fd:
            if libbpf.object_kind(fd) != "link":
                raise refuse(path, libbpf.object_kind(fd), "link")
            info = libbpf.link_info(fd)
        found_link, expected_link = (info.type, info.prog_id), (int(LinkType.TRACING), made[name])
        if found_link != expected_link:
            raise refuse(path, f"link (type, program) = {found_link}", expected_link)
