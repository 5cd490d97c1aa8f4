"""Reads what a guest left: JUnit, journals and kernel logs."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TAIL_LINES = 60


@dataclass
class Result:
    passed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)

    def line(self) -> str:
        return f"{self.passed} passed, {len(self.failures)} failed, {self.skipped} skipped"


def read(results: Path, stages: Sequence[str], junit: Path) -> Result:
    """Sums up the stages of a guest, and writes them to one JUnit file.

    A stage that did not come to its end is a failure, too.
    """
    result = Result()
    suites = ET.Element("testsuites")
    for stage in stages:
        report = results / f"{stage}.xml"
        if report.exists():
            _add(ET.parse(report), stage, suites, result)
        else:
            result.failures.append(f"{stage}: did not come to its end")
    ET.ElementTree(suites).write(junit, encoding="utf-8", xml_declaration=True)
    return result


def _add(report: ET.ElementTree, stage: str, suites: ET.Element, result: Result) -> None:
    for suite in report.getroot().iter("testsuite"):
        suites.append(suite)
        for case in suite.iter("testcase"):
            wrong = [element for element in case if element.tag in ("failure", "error")]
            for element in wrong:
                name = f"{case.get('classname')}::{case.get('name')}"
                result.failures.append(f"{stage}: {name}\n{(element.text or '').rstrip()}")
            if case.find("skipped") is not None:
                result.skipped += 1
            elif not wrong:
                result.passed += 1


def logs(results: Path, consoles: Sequence[Path]) -> str:
    """The ends of the guest's logs; whole, they are in the same directory."""
    parts = []
    logs = (*sorted(results.glob("*.journal")), *sorted(results.glob("*.kernel-log")), *consoles)
    for log in logs:
        if log.exists():
            lines = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            parts.append("\n".join([f"----- the end of {log}", *lines]))
    return "\n".join(parts)
