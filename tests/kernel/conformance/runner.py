"""Runs one behaviour in one place, and gives what it noted."""

from __future__ import annotations

import time
import traceback
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection as Channel
from multiprocessing.connection import wait
from typing import Any

import pytest

from kernel.conformance.asleep import Vigil, places
from kernel.conformance.catalogue import JOINED, LEFT, Behaviour, Variant
from kernel.conformance.differences import DIFFERENCES
from kernel.conformance.observe import error
from kernel.conformance.places import Plain
from kernel.conformance.scene import Scene
from support import cgroups
from support.child import Child

LOOK_S = 0.25
# Every thread asleep, and none has run for so many looks: it waits for what does not come. Or for a
# retransmission, where the machine is so loaded that lo drops packets; so this is long, but for
# behaviours that are known to differ.
QUIET_LOOKS = 40
QUIET_LOOKS_OF_KNOWN = 5
SERVE_S = 0.02
LIMIT_S = 60.0
ATTEMPTS = 3  # on a busy host any message may go by TCP

Notes = dict[str, Any]
ENDED = "ends with"  # the note of a behaviour that did not get to its end
HANG = "a hang"


class Unproven(AssertionError):
    """The behaviour was not observed where it was to be, so what it noted says nothing."""


def _perform(channel: Channel, place: Plain, behaviour: Behaviour, variant: Variant) -> None:
    # behaviours fork beside threads, which Python 3.12 warns of
    warnings.simplefilter("ignore", DeprecationWarning)
    try:
        cgroups.join(place.cgroup)
        scene = Scene(channel, place)
        if behaviour.pair:
            scene.establish(variant)
        scene.begin()
        behaviour.function(scene)
        channel.send(("end", None, None))
    except OSError as raised:
        if raised.errno is None:  # a helper's TimeoutError
            channel.send(("failed", traceback.format_exc(), None))
            return
        where = traceback.extract_tb(raised.__traceback__)[-1]
        channel.send(("error", error(raised), f"{where.line} ({where.filename}:{where.lineno})"))
    except BaseException:
        channel.send(("failed", traceback.format_exc(), None))


def run(behaviour: Behaviour, variant: Variant, place: Plain) -> Notes:
    """What it noted; under ENDED why it ended early, if it did: an errno, or HANG.

    Raises Unproven if the connection was not accelerated where it was to be, each time.
    """
    for _ in range(ATTEMPTS - 1):
        with suppress(Unproven):
            return _run_once(behaviour, variant, place)
    return _run_once(behaviour, variant, place)


def _run_once(behaviour: Behaviour, variant: Variant, place: Plain) -> Notes:
    place.prepare()
    before = place.figures()
    try:
        with Child(_perform, place, behaviour, variant) as child:
            begun, notes = _listen(child.channel, behaviour, place)
    finally:
        cgroups.empty(place.cgroup)
    _check_proof(behaviour, variant, place, before, begun)
    return notes


def _check_proof(
    behaviour: Behaviour,
    variant: Variant,
    place: Plain,
    before: tuple[int, int],
    begun: tuple[int, int],
) -> None:
    after = place.figures()
    if after == (0, 0):
        return  # plain TCP, or the textbook, which does not count
    connections, messages = after[0] - before[0], after[1] - begun[1]
    wanted = behaviour.accelerated + (variant.state == JOINED)  # it was accelerated before
    if connections != wanted:
        raise Unproven(f"{connections} connections accelerated, not {wanted}")
    if variant.state == LEFT and messages:
        raise Unproven(f"{messages} messages redirected after the connection had left")
    if behaviour.guarded and messages:
        raise Unproven(f"{messages} messages redirected, from which the guard was to keep them")
    if variant.state != LEFT and behaviour.redirects and not messages and not place.seen():
        raise Unproven("no message was redirected")


def _listen(channel: Channel, behaviour: Behaviour, place: Plain) -> tuple[tuple[int, int], Notes]:
    notes: Notes = {}
    begun = place.figures()
    vigil = Vigil(place.cgroup)
    deadline = time.monotonic() + LIMIT_S
    looked = time.monotonic()
    unfinished = held = False
    known = place.accelerates and behaviour.name in DIFFERENCES
    patience = QUIET_LOOKS_OF_KNOWN if known else QUIET_LOOKS
    while True:
        wakes = [] if held else place.wakes()
        ready = wait([channel, *wakes], SERVE_S if unfinished else LOOK_S)
        if channel in ready:
            try:
                kind, what, value = channel.recv()
            except EOFError:
                pytest.fail(f"{behaviour.name}: the child died unheard; it noted {notes}")
            if kind == "note":
                assert what not in notes, f"{behaviour.name} notes {what!r} twice"
                notes[what] = value
            elif kind == "leave":
                place.leave()
                channel.send("")
            elif kind == "look":
                channel.send(place.look())
            elif kind == "hold":
                held = True
                channel.send("")
            elif kind == "missing":
                channel.send(place.missing(*value))
            elif kind == "begin":
                begun = place.figures()
                channel.send("")
            elif kind == "error":
                notes[ENDED] = what
                print(f"{behaviour.name}: {what} from {value}")
                return begun, notes
            elif kind == "failed":
                pytest.fail(f"{behaviour.name} noted {notes}, then:\n{what}", pytrace=False)
            else:
                return begun, notes
        if unfinished or len(ready) > (channel in ready):
            unfinished = place.serve()
        now = time.monotonic()
        if now - looked >= LOOK_S:
            looked = now
            if vigil.look() >= patience:
                notes[ENDED] = HANG
                print(f"{behaviour.name} hangs:\n{places(place.cgroup)}")
                return begun, notes
        if now > deadline:
            pytest.fail(f"{behaviour.name} did not end in {LIMIT_S:.0f} s; it noted {notes}")
