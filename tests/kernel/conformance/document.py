"""Writes docs/semantics.md from results/*.json; `make semantics` runs it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from kernel.conformance import results
from kernel.conformance.behaviours import ALL, AREAS
from kernel.conformance.catalogue import JOINED, LEFT, Behaviour
from kernel.conformance.differences import (
    DIFFERENCES,
    HOW_NOTICED,
    NOTICED,
    REASONS,
    Reason,
)
from kernel.conformance.results import Found, Kernel, Notes
from support.checkout import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "semantics.md"

INTRODUCTION = """\
# What programs see

Made by `make semantics` from what
[tests/kernel/conformance](../tests/kernel/conformance) found; do not edit.

Each behaviour below is a small program that the suite runs twice: over plain TCP, and over an
accelerated connection, which is proven to be one by the datapath's own counters. It runs with
either end of the connection, on a **fresh** connection, on one that is **used** (both directions
have been redirected), on one that has **left** acceleration after exceeding its window, and on one
that was **joined** again after that (Linux JOINED). What it sees has to be the same, or to be in
the first table, with the reason. The suite fails for a difference that goes away as for one that
appears. It also makes up random sequences of calls, and tries them on both (test_sequences.py).

"""


def cell(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(cell, value)) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).replace("|", "\\|")


def line(notes: Notes, only: set[str] | None = None) -> str:
    parts = [f"{k}: {cell(v)}" for k, v in notes.items() if only is None or k in only]
    return "; ".join(parts)


def anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return "#" + kept.replace(" ", "-")


def differing_keys(plain: Notes, other: Notes) -> set[str]:
    return {k for k in {**plain, **other} if plain.get(k) != other.get(k)}


def where(behaviour: Behaviour, kernel: Kernel, variants: list[str]) -> str:
    """Which variants differ, if it is not all that are on the sockhash."""
    states = set(kernel.states) - {LEFT}
    on_the_map = [str(v) for v in behaviour.variants if v.state in states]
    return "" if variants == on_the_map else f" ({', '.join(variants)})"


def on_kernels(behaviour: Behaviour, kernels: dict[str, dict[str, Found]]) -> str:
    """By kernel, where they do not all do the same."""
    alike: dict[str, list[str]] = {}
    for name, found in kernels.items():
        text = on_kernel(behaviour, results.recorded_kernel(name), found.get(behaviour.name))
        alike.setdefault(text, []).append(name)
    if len(alike) == 1:
        return next(iter(alike))
    return "<br>".join(f"**{', '.join(names)}** {text}" for text, names in alike.items())


def on_kernel(behaviour: Behaviour, kernel: Kernel, found: Found | None) -> str:
    if found is None:
        return "not run"
    if not found["differs"]:
        return "same"
    shown = []
    for notes in found["differs"].values():
        text = line(notes, differing_keys(found["plain"], notes))
        if text not in shown:
            shown.append(text)
    return " / ".join(shown) + where(behaviour, kernel, list(found["differs"]))


def tested_kernels() -> str:
    """In words, with what else made a difference."""
    words = []
    for name in results.all_recorded():
        kernel = results.recorded_kernel(name)
        version = ".".join(map(str, kernel.version))
        if kernel.architecture != results.FIRST_ARCHITECTURE:
            version += f" on {kernel.architecture}"
        words.append(version if kernel.sees else f"{version} (one without ftrace)")
    return ", ".join(words)


def heading(columns: list[str]) -> Iterator[str]:
    yield row(columns)
    yield row(["---"] * len(columns))


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def differences(kernels: dict[str, dict[str, Found]]) -> Iterator[str]:
    yield "## What differs"
    yield ""
    yield f"On kernels {tested_kernels()}; on all of them where none is named."
    yield ""
    yield from heading(["Behaviour", "Plain TCP", "Accelerated", "Why, and what sockredird does"])
    for behaviour in ALL:
        if behaviour.name in DIFFERENCES and (reason := reason_of(behaviour)).by_default:
            link = f"[{reason.title}]({anchor(reason.title)})"
            yield row([cell(behaviour.title), *compared(behaviour, kernels), link])
    yield from ("", f"### {NOTICED}", "", HOW_NOTICED, "")
    for reason in REASONS.values():
        yield from (f"### {reason.title}", "", f"{reason.cause}", "")
        yield from (f"**What sockredird does:** {reason.guard}", "")
        if not reason.by_default:
            yield from accelerated_only(reason, kernels)


def reason_of(behaviour: Behaviour) -> Reason:
    return REASONS[DIFFERENCES[behaviour.name].reason]


def compared(behaviour: Behaviour, kernels: dict[str, dict[str, Found]]) -> tuple[str, str]:
    """What differs, by plain TCP and accelerated."""
    found = [results_of.get(behaviour.name) for results_of in kernels.values()]
    keys: set[str] = set()
    for one in found:
        for notes in one["differs"].values() if one else ():
            keys |= differing_keys(one["plain"], notes) if one else set()
    newest = next(one for one in reversed(found) if one)
    return line(newest["plain"], keys), on_kernels(behaviour, kernels)


def accelerated_only(reason: Reason, kernels: dict[str, dict[str, Found]]) -> Iterator[str]:
    yield from heading(["Behaviour", "Plain TCP", "Accelerated"])
    for behaviour in ALL:
        if behaviour.name in DIFFERENCES and reason_of(behaviour) == reason:
            yield row([cell(behaviour.title), *compared(behaviour, kernels)])
    yield ""


def how(behaviour: Behaviour) -> str:
    if not behaviour.accelerated:
        return "never accelerated"
    return "taken off the sockhash by the guard" if behaviour.guarded else "accelerated"


def same(kernels: dict[str, dict[str, Found]]) -> Iterator[str]:
    yield "## What is the same"
    yield ""
    yield "On the same kernels, with what a program sees."
    yield ""
    for area in AREAS:
        members = [b for b in ALL if b.function.__module__ == area.__name__]
        members = [b for b in members if b.name not in DIFFERENCES]
        yield f"### {members[0].area}"
        yield ""
        yield from heading(["Behaviour", "Plain TCP and accelerated", "How"])
        for behaviour in members:
            found = [results_of.get(behaviour.name) for results_of in kernels.values()]
            newest = next(one for one in reversed(found) if one)
            yield row([cell(behaviour.title), line(newest["plain"]), how(behaviour)])
        yield ""


def text() -> str:
    kernels = results.all_recorded()
    lines = [*differences(kernels), *same(kernels)]
    joined = [name for name in kernels if JOINED in results.recorded_kernel(name).states]
    return INTRODUCTION.replace("JOINED", ", ".join(joined)) + "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(text())
    sys.stdout.write(f"{DOCUMENT}\n")
