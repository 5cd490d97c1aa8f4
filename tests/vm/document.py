"""Writes docs/kernels.md from what the guests left in build/vm; `make kernels` runs it."""

from __future__ import annotations

import json
import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from kernel.conformance import results
from kernel.conformance.behaviours import ALL
from kernel.conformance.document import cell, line, tested_kernels
from vm.guest.boots import SEQUENCES
from vm.kernels import KERNELS, Kernel

REPOSITORY = Path(__file__).parents[2]
BUILD = REPOSITORY / "build" / "vm"
DOCUMENT = REPOSITORY / "docs" / "kernels.md"

INTRODUCTION = """\
# Kernels

Made by `make kernels` from the results of `make vm-test`; do not edit. A column is named after the
kernel's series, or after Debian's testing or unstable release, whose own kernel it is, and after
the architecture where that is not amd64: `KERNEL=6.12 ARCH=arm64`, `KERNEL=forky`.

Each of these is a Debian host under systemd in a virtual machine: the package is installed there,
every command is typed, real programs run over it, it is upgraded and removed under traffic, the
host is rebooted with acceleration enabled, and the test suites run over the installed package:
one in sixteen of their tests, other ones on each kernel, or all with `FULL=1`. What does not depend
on the kernel, such as polkit and apt, is tried once on each release of Debian. Besides, if these
sequences of boots were run: `containers`, with podman and Docker, and `reboots`, of a host that is
rebooted ten times with services that are to be accelerated.
"""

Row = list[str]


def table(head: Row, rows: list[Row]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cells) + " |"
    yield ""


def outcomes(file: Path) -> dict[str, dict[str, str]]:
    """{stage: {test: outcome}}; why, where a test is skipped or expected to fail."""
    found: dict[str, dict[str, str]] = {}
    for suite in ET.parse(file).getroot().iter("testsuite"):
        stage = found.setdefault(str(suite.get("name")), {})
        for case in suite.iter("testcase"):
            outcome = "passed"
            for element in case:
                if element.tag in ("failure", "error"):
                    outcome = "failed"
                elif element.tag == "skipped":
                    outcome = f"{element.get('type', 'skipped').removeprefix('pytest.')}: " + str(
                        element.get("message")
                    )
            stage[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return found


def junit(kernel: Kernel, boots: str = "package") -> Path:
    return BUILD / f"junit-{kernel.run_name(boots)}.xml"


def guest_results(kernel: Kernel) -> Path:
    return BUILD / f"guest-{kernel.run_name()}" / "results"


def found_on(kernel: Kernel) -> dict[str, dict[str, str]]:
    """The outcomes of the package's boots by stage, and of each other sequence that was run."""
    found = outcomes(junit(kernel))
    for boots in SEQUENCES:
        if boots != "package" and junit(kernel, boots).exists():
            found[boots] = {
                f"{stage}.{test}": outcome
                for stage, tests in outcomes(junit(kernel, boots)).items()
                for test, outcome in tests.items()
            }
    return found


def hosts(kernels: list[Kernel]) -> Iterator[str]:
    facts = [json.loads((guest_results(kernel) / "host.json").read_text()) for kernel in kernels]
    names = sorted({name for found in facts for name in found}, key=lambda n: (n != "kernel", n))
    titles = [kernel.title for kernel in kernels]
    yield from table(["", *titles], [[name, *(f.get(name, "") for f in facts)] for name in names])


def all_stages(found: list[dict[str, dict[str, str]]]) -> list[str]:
    return list(dict.fromkeys(stage for kernel in found for stage in kernel))


def totals(found: list[dict[str, dict[str, str]]]) -> Iterator[Row]:
    for stage in all_stages(found):
        row = [stage]
        for kernel in found:
            if stage not in kernel:
                row.append("not run")
                continue
            values = list(kernel[stage].values())
            parts = [f"{values.count('passed')} passed"]
            for outcome in ("failed", "xfail", "skip"):
                number = sum(value.startswith(outcome) for value in values)
                parts += [f"{number} {outcome}"] if number else []
            row.append(", ".join(parts))
        yield row


def differing_tests(found: list[dict[str, dict[str, str]]]) -> Iterator[Row]:
    for stage in all_stages(found):
        for test in dict.fromkeys(name for kernel in found for name in kernel.get(stage, {})):
            row = [kernel.get(stage, {}).get(test, "not run") for kernel in found]
            if len(set(row) - {"not run"}) > 1:
                yield [f"`{cell(test)}`", *map(cell, row)]


def differing_behaviours() -> Iterator[Row]:
    """Of the conformance suite: what programs see, over TCP and accelerated, by kernel."""
    kernels = results.all_recorded()
    for behaviour in ALL:
        alike: dict[str, list[str]] = {}
        for kernel, found in kernels.items():
            one = found.get(behaviour.name)
            seen = dict.fromkeys(line(notes) for notes in one["differs"].values()) if one else ()
            plain = line(one["plain"]) if one else "not run"
            words = "<br>accelerated: ".join([plain, *seen])
            alike.setdefault(words, []).append(kernel)
        if len(alike) > 1:
            named = [f"**{', '.join(names)}** {words}" for words, names in alike.items()]
            yield [cell(behaviour.title), "<br>".join(named)]


def text(kernels: list[Kernel]) -> str:
    found = [found_on(kernel) for kernel in kernels]
    titles = [kernel.title for kernel in kernels]
    lines = [INTRODUCTION, *hosts(kernels)]
    lines += ["## Tests", "", *table(["Stage", *titles], list(totals(found)))]
    lines += ["Where they do not end alike:", ""]
    different = list(differing_tests(found))
    lines += table(["Test", *titles], different) if different else ["(nowhere)", ""]
    rows = list(differing_behaviours())
    lines += ["## What programs see", ""]
    lines += [
        "Of all behaviours in [semantics.md](semantics.md), those that are not the same on "
        f"{tested_kernels()}:",
        "",
    ]
    lines += table(["Behaviour", "What they see"], rows) if rows else ["(none)", ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    tested = []
    for kernel in KERNELS:
        if not junit(kernel).exists():
            sys.stdout.write(f"no column for {kernel.title}: it has no results in {BUILD}\n")
            continue
        tested.append(kernel)
        for file in (guest_results(kernel) / "conformance").glob("*.json"):
            if len(results.read(file)) == len(ALL):  # of a whole suite: FULL=1
                shutil.copy(file, results.RESULTS)
    DOCUMENT.write_text(text(tested))
    sys.stdout.write(f"{DOCUMENT}\n")


if __name__ == "__main__":
    main()
