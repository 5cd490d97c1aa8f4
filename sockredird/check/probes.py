"""Probes: findings about the running kernel, from small exercises over a datapath on trial.

The datapath may be any that can be attached to a cgroup. So the tests see each probe fail, over a
datapath that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sockredird.check.findings import FAIL, PASS, WARN, Finding
from sockredird.check.sandbox import Sandbox, Unavailable
from sockredird.datapath import detectors
from sockredird.datapath.generation import Generation
from sockredird.datapath.members import Walked
from sockredird.errors import Busy, LoadFailed, SockredirError, UnsupportedKernel

WINDOW_BYTES = 256 << 10  # during a trial; it is small so that it is filled soon
UNLOAD_LIMIT_S = 2.0
_TRIES = 5  # of a connection: on a busy host any message may go by TCP
_MESSAGES_LIMIT = 200  # FIRST_WINDOW_MESSAGES of bpf/carry/bounds.h; the exercise looks each 100


class Subject(Protocol):
    """A datapath on trial."""

    def attached(self, cgroup: Path, port: int) -> AbstractContextManager[None]:
        """Within the with block, the datapath accelerates connections to `port` in `cgroup`."""

    @property
    def detectors(self) -> frozenset[str]:
        """Which of its fentry and fexit programs the kernel takes."""

    def members(self) -> Walked | None:
        """What its iterator counts; None if it has no iterator."""

    def begin_unload(self) -> None: ...

    def finish_unload(self) -> bool:
        """Returns whether no socket is on its sockhash any more."""


@dataclass(frozen=True)
class Candidate:
    """A generation that is not live, as the subject of a trial."""

    generation: Generation

    def attached(self, cgroup: Path, port: int) -> AbstractContextManager[None]:
        return self.generation.tried_in(cgroup, port, WINDOW_BYTES)

    @property
    def detectors(self) -> frozenset[str]:
        return frozenset(self.generation.manifest["detectors"])

    def members(self) -> Walked:
        return self.generation.members.walk()

    def begin_unload(self) -> None:
        self.generation.stop()

    def finish_unload(self) -> bool:
        return self.generation.members.retire(UNLOAD_LIMIT_S, lambda walked: walked.entries == 0)


@dataclass(frozen=True)
class _Trial:
    sandbox: Sandbox
    subject: Subject


Answer = dict[str, Any]
Verdict = tuple[str, str]


def _wrong(answer: Answer) -> str:
    """What was wrong with the bytes; empty if nothing was."""
    if "error" in answer:
        return f"a program would have met an error: {answer['error']}"
    return "" if answer["correct"] else "bytes were lost, swapped or late"


def _pairing(trial: _Trial) -> Iterator[tuple[str, Verdict]]:
    verdict = _redirect(trial)
    yield "redirect", verdict
    if verdict[0] != PASS:
        yield "iterator", (WARN, "not tried: nothing was redirected")
        return
    walked = trial.subject.members()
    if walked is not None and (walked.entries, walked.connections) == (2, 1):
        yield "iterator", (PASS, "accelerated connections can be listed and handed back to TCP")
    else:
        yield (
            "iterator",
            (FAIL, f"the sockhash is listed wrongly, so no connection could leave it: {walked}"),
        )


def _redirect(trial: _Trial) -> Verdict:
    for ipv6 in (False, True):
        for number in range(_TRIES):
            if number and not ipv6:  # the exercise keeps that one
                trial.sandbox.order("close")
            answer = trial.sandbox.order("send_both_ways", ipv6=ipv6)
            if "not_tried" in answer:  # all others would fail too, each after a timeout
                raise Unavailable(answer["not_tried"])
            if answer.get("missing"):
                break
            if wrong := _wrong(answer):
                return FAIL, f"{wrong} on an accelerated connection"
            if not answer["tcp_bytes"]:
                break
        else:
            return FAIL, "connections stay on TCP: their messages are not redirected"
    return PASS, "connections are paired and their messages redirected"


_LEAVE_OUT = "so leave them out of scope"
_RESET_ONCE = "may have one connection reset, and are left to TCP from then on"
_COULD_COUNT = "; sockredird(8), FIONREAD, says how to have that put right"


def _counted(trial: _Trial, detail: str) -> Verdict:
    if detectors.FIONREAD in trial.subject.detectors:
        detail = "sockredird puts the answer of FIONREAD right: it counts all that can be read"
    return PASS, detail


def _splicers(seen: frozenset[str]) -> str:
    if seen >= detectors.LATE:
        return (
            "use it from the start or soon after (Go's io.Copy, HAProxy, docker-proxy) are served "
            f"by TCP; those that begin to use it later {_RESET_ONCE}"
        )
    return f"use it (Go's io.Copy, HAProxy, docker-proxy) may hang, {_LEAVE_OUT}"


def _redirected_data(trial: _Trial) -> Iterator[tuple[str, Verdict]]:
    answer = trial.sandbox.order("inspect")
    trial.sandbox.order("close")
    if "not_tried" in answer:
        for name in ("fionread_redirected", "splice"):
            yield name, (WARN, _not_tried(answer))
        return
    wrong = _wrong(answer)
    seen = trial.subject.detectors
    if wrong:
        yield "fionread_redirected", (FAIL, f"{wrong} after FIONREAD or splice(2)")
    elif answer["fionread"] == answer["size"]:
        yield "fionread_redirected", _counted(trial, "FIONREAD counts redirected data")
    else:
        yield (
            "fionread_redirected",
            (
                WARN,
                f"FIONREAD reports {answer['fionread']} of {answer['size']} redirected bytes: "
                "programs that use it before they read (nginx) "
                f"{_RESET_ONCE if 'fionread' in seen else f'may hang, {_LEAVE_OUT}'}{_COULD_COUNT}",
            ),
        )
    if not wrong and answer["spliced"] == answer["size"]:
        yield "splice", (PASS, "splice(2) moves redirected data")
    else:
        yield (
            "splice",
            (
                WARN,
                f"splice(2) finds nothing of redirected data: proxies that {_splicers(seen)}",
            ),
        )


def _order(trial: _Trial) -> Verdict:
    answer = trial.sandbox.order("defer")
    if "not_tried" in answer:
        return WARN, _not_tried(answer)
    if "error" in answer or answer["correct"] != answer["tries"]:
        found = answer.get("error") or f"{answer['correct']} of {answer['tries']} in order"
        return FAIL, f"data sent before accept(2) is overtaken by later data ({found})"
    return PASS, "data sent before accept(2) (TCP_DEFER_ACCEPT) is not overtaken"


def _backpressure(trial: _Trial) -> Verdict:
    bytes_, messages = trial.sandbox.order("flood"), trial.sandbox.order("flood_with_bytes")
    for answer in (bytes_, messages):
        if "not_tried" in answer:
            return WARN, _not_tried(answer)
        if "bounded" in answer and not answer["bounded"]:
            return FAIL, "senders are not made to wait, so unread data could take all memory"
        if wrong := _wrong(answer):
            return FAIL, f"{wrong} once unread data reached its limit"
    if messages["messages"] > _MESSAGES_LIMIT:
        return FAIL, f"{messages['messages']} unread messages were accepted before a limit held"
    return PASS, "unread data is bounded in bytes and in messages"


def _mptcp(trial: _Trial) -> Verdict:
    answer = trial.sandbox.order("mptcp")
    if answer.get("missing"):
        return PASS, "this kernel, or its configuration, has no Multipath TCP"
    if "not_tried" in answer:
        return WARN, _not_tried(answer)
    if answer.get("redirected"):
        return FAIL, "Multipath TCP connections are redirected, which breaks them"
    if wrong := _wrong(answer):
        return FAIL, f"{wrong} on a Multipath TCP connection"
    return PASS, "Multipath TCP connections are left alone"


def _ktls(trial: _Trial) -> Verdict:
    answer = trial.sandbox.order("ktls")
    if answer.get("missing"):
        return PASS, "kTLS is not loaded, so no program can switch it on"
    if "not_tried" in answer:
        return WARN, _not_tried(answer)
    if wrong := _wrong(answer):
        return (
            WARN,
            f"{wrong} once kTLS is switched on: leave programs that do so out of scope",
        )
    if answer["refused"]:
        return PASS, f"kTLS on an accelerated connection is refused ({answer['refused']})"
    return PASS, "a connection goes on when kTLS is switched on"


def _unload(trial: _Trial) -> Iterator[tuple[str, Verdict]]:
    """The last probes, since nothing is accelerated after them."""
    if "not_tried" in (left := trial.sandbox.order("leave_unread")):
        for name in ("unload", "fionread_tcp"):
            yield name, (WARN, _not_tried(left))
        return
    trial.subject.begin_unload()
    unread = trial.sandbox.order("read_unread")
    if wrong := _wrong(unread):
        yield "unload", (FAIL, f"{wrong} when acceleration ended with data unread")
        yield "fionread_tcp", (WARN, "not tried: unloading failed")
        return
    finished = trial.subject.finish_unload()
    after = trial.sandbox.order("after_unload")
    if not finished:
        yield "unload", (FAIL, "connections do not leave the sockhash after their data is read")
    elif wrong := _wrong(after):
        yield "unload", (FAIL, f"{wrong} after acceleration ended")
    elif not after["native"]:
        yield "unload", (FAIL, "a connection that was accelerated is not plain TCP afterwards")
    else:
        yield "unload", (PASS, "connections go back to TCP without losing anything")
    if unread["fionread"] == unread["size"]:
        counted = "FIONREAD counts TCP data while a connection goes back to TCP"
        yield "fionread_tcp", _counted(trial, counted)
    else:
        yield (
            "fionread_tcp",
            (
                WARN,
                f"FIONREAD reports {unread['fionread']} of {unread['size']} bytes of TCP data "
                "until a connection has left the sockhash, which usually takes milliseconds"
                f"{_COULD_COUNT}",
            ),
        )


def _not_tried(answer: Answer) -> str:
    return f"not tried: {answer['not_tried']}"


_SINGLE: dict[str, Callable[[_Trial], Verdict]] = {
    "order": _order,
    "backpressure": _backpressure,
    "mptcp": _mptcp,
    "ktls": _ktls,
}


def try_out(sandbox: Sandbox, subject: Subject) -> list[Finding]:
    """All probes over `subject`, which is attached meanwhile. Raises Unavailable."""
    trial = _Trial(sandbox, subject)
    try:
        with subject.attached(sandbox.cgroup, sandbox.order("reserve")["port"]):
            links = "the datapath works beside what others have attached to cgroups"
            findings = [Finding("links", PASS, links)]
            return findings + [Finding(name, *verdict) for name, verdict in _all(trial)]
    except LoadFailed as error:
        raise Unavailable(str(error)) from error


def _all(trial: _Trial) -> Iterator[tuple[str, Verdict]]:
    yield from _pairing(trial)
    yield from _redirected_data(trial)
    for name, probe in _SINGLE.items():
        yield name, probe(trial)
    yield from _unload(trial)


def not_loaded(error: SockredirError) -> Finding:
    """The finding about a datapath that could not be compiled or loaded."""
    if isinstance(error, UnsupportedKernel):
        return Finding("btf", FAIL, str(error))
    if isinstance(error, Busy):  # which says nothing about the kernel
        return unavailable(error)
    return Finding("programs", FAIL, str(error))


LOADED = Finding(
    "programs", PASS, "the kernel has all map types and helpers, and accepts the programs"
)


def unavailable(error: Unavailable | Busy) -> Finding:
    return Finding("trial", WARN, f"the kernel was not tried: {error}")
