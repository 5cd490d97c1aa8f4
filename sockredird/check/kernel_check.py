"""Tries the running kernel, before each Enable and whenever somebody asks, and keeps the result.

A generation is tried in the worker thread, so there is one trial at a time, and none while the
manager changes something. A trial takes about 0.1 s. To compile a generation for Check takes
longer, and is done outside the worker.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sockredird.check import host_facts, kernel_facts, probes, sandbox
from sockredird.check.findings import FAIL, PASS, WARN, Finding, failed
from sockredird.check.probes import Candidate
from sockredird.check.sandbox import Sandbox, Unavailable
from sockredird.datapath.generation import Generation, Trial
from sockredird.datapath.plan import Plan
from sockredird.errors import LoadFailed, SockredirError, UnsupportedKernel
from sockredird.kernel import files
from sockredird.kernel.cgroup import cgroup_id
from sockredird.loader import compiler

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 1024  # more than the exercises need
_Result = TypeVar("_Result")
Generations = Callable[[], list[Generation]]
InWorker = Callable[[Callable[[], _Result]], _Result]


@contextmanager
def leaving_alone(generations: list[Generation], cgroup: Path) -> Iterator[None]:
    """Within the with block, `generations` ignore that cgroup."""
    with ExitStack() as stack:
        for generation in generations:
            stack.callback(generation.is_tried_in, 0)
            generation.is_tried_in(cgroup_id(cgroup))
        yield


class KernelCheck:
    """`kernel` has the findings of the last trial of the kernel, which was at the time `when`.

    Both survive a restart of the daemon, but neither a boot nor a change of the BPF programs.
    """

    def __init__(self, root: Path, runtime: Path) -> None:
        self.kernel: list[Finding] = []
        self.when = 0  # microseconds since the epoch; 0: never tried
        self._root = root
        self._notes = runtime / "kernel.json"
        self._read_notes()

    @contextmanager
    def gate(self, generations: list[Generation]) -> Iterator[Trial | None]:
        """A trial for Generation.create(), which raises UnsupportedKernel if a check fails.

        `generations` ignore the trial. If the kernel cannot be tried, the result is None, since
        nothing is known against it.
        """
        with ExitStack() as stack:
            try:
                box = stack.enter_context(sandbox.opened(self._root))
            except Unavailable as error:
                log.warning("enabling without a trial: %s", error)
                self._note([probes.unavailable(error)])
                yield None
                return
            box.begin("kernel")  # the child answers while the datapath is compiled

            def trial(candidate: Generation) -> None:
                findings = self._examine(box, candidate, generations)
                self._note(findings)
                bad = failed(findings)
                if bad is not None:
                    raise UnsupportedKernel(
                        f"the kernel fails the check {bad.name!r}: {bad.detail}. Nothing was "
                        "changed; `sockredirctl check` has more"
                    )

            try:
                yield trial
            except LoadFailed as error:
                lockdown = kernel_facts.lockdown_finding(kernel_facts.lockdown())
                if lockdown.status == FAIL:
                    raise UnsupportedKernel(lockdown.detail) from error
                raise

    def run(self, generations: Generations, in_worker: InWorker[Any]) -> list[Finding]:
        """All findings about kernel and host. `generations` is called in the worker."""
        plan = Plan(
            scope={},
            cgroups=(),
            ports=frozenset(),
            max_connections=_MAX_CONNECTIONS,
            window_bytes=probes.WINDOW_BYTES,
        )
        try:
            with Generation.unpinned(self._root, plan) as candidate:
                kernel, ours = in_worker(lambda: self._try(candidate, generations()))
                return [*kernel, *host_facts.gather(candidate, ours)]
        except SockredirError as error:
            reason = error
        return [*in_worker(lambda: self._without_datapath(reason)), *host_facts.gather(None)]

    def summary(self) -> dict[str, Any]:
        """For the status: how many checks of the kernel ended how, and when."""
        counts = Counter(finding.status for finding in self.kernel)
        return {
            "release": os.uname().release,
            "passed": counts[PASS],
            "warned": counts[WARN],
            "noted": sum(finding.note for finding in self.kernel),
            "failed": counts[FAIL],
            "checked": self.when,
        }

    def _try(
        self, candidate: Generation, generations: list[Generation]
    ) -> tuple[list[Finding], frozenset[int]]:
        """Findings about the kernel, and the ids of all programs of sockredird."""
        try:
            with sandbox.opened(self._root) as box:
                box.begin("kernel")
                findings = self._examine(box, candidate, generations)
        except Unavailable as error:
            findings = [probes.unavailable(error)]
        self._note(findings)
        programs = (generation.program_ids() for generation in (candidate, *generations))
        return findings, frozenset().union(*programs)

    def _examine(
        self, box: Sandbox, candidate: Generation, generations: list[Generation]
    ) -> list[Finding]:
        try:
            subject = Candidate(candidate)
            facts = kernel_facts.findings(box.finish("kernel"), subject.detectors)
            with leaving_alone(generations, box.cgroup):
                return [*facts, probes.LOADED, *probes.try_out(box, subject)]
        except Unavailable as error:
            log.warning("%s", error)
            return [probes.unavailable(error)]

    def _without_datapath(self, error: SockredirError) -> list[Finding]:
        findings = [probes.not_loaded(error)]
        try:
            with sandbox.opened(self._root) as box:
                known = {finding.name for finding in findings}
                facts = kernel_facts.findings(box.order("kernel"))
                findings += [finding for finding in facts if finding.name not in known]
        except Unavailable as unavailable:
            findings.append(probes.unavailable(unavailable))
        self._note(findings)
        return findings

    # -- notes -------------------------------------------------------------------------------

    def _key(self) -> dict[str, str]:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"boot": boot, "source": compiler.source_digest()}

    def _note(self, findings: list[Finding]) -> None:
        self.kernel, self.when = findings, time.time_ns() // 1000
        counts = Counter(finding.status for finding in findings)
        log.info("tried the kernel: %s", ", ".join(f"{n} {status}" for status, n in counts.items()))
        notes = {
            **self._key(),
            "when": self.when,
            "findings": [[f.name, f.status, f.detail] for f in findings],
        }
        try:
            files.write(self._notes, notes)
        except OSError as error:
            log.warning("the findings about the kernel cannot be saved: %s", error)

    def _read_notes(self) -> None:
        notes = files.read_or_empty(self._notes)
        try:
            if self._key().items() <= notes.items():
                self.kernel = [Finding(*map(str, found)) for found in notes["findings"]]
                self.when = int(notes["when"])
        except (KeyError, TypeError, ValueError) as error:
            log.warning("%s is ignored: %r", self._notes, error)
