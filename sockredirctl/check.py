"""`sockredirctl check`: how the running kernel behaves, and what on this host to know before."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from sockredirctl import progress, render, table
from sockredirctl.client import Client
from sockredirctl.errors import ClientError

Finding = dict[str, Any]
_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    table.add_arguments(command)


async def run(client: Client, arguments: argparse.Namespace) -> None:
    """Raises ClientError if a check fails, once all are shown."""
    async with progress.shown("trying this kernel, and looking at this host"):
        findings: list[Finding] = await client.call("Check")
    if arguments.json:
        print(json.dumps(findings), flush=True)
    else:
        shown = text(render.printable(findings), table.width(arguments))
        table.show(shown, pager=not arguments.no_pager)
    failed = [finding["name"] for finding in findings if finding["status"] == "fail"]
    if failed:
        raise ClientError(f"not fit for acceleration: {', '.join(failed)}")


def text(findings: list[Finding], width: int | None = None) -> str:
    """A line for each, to be searched; over several lines where `width` is less.

    What to type about it stands on a line of its own.
    """
    names = max(len(finding["name"]) for finding in findings)
    indent = " " * (names + 8)
    wrapper = textwrap.TextWrapper(
        width or 1 << 20,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    lines = []
    for finding in findings:
        status = word(finding)
        first, *more = wrapper.wrap(f"{status}  {finding['name']:<{names}}  {finding['detail']}")
        if status in _COLOURS:
            first = table.coloured(status, _COLOURS[status]) + first[len(status) :]
        lines += [first, *more]
        if finding.get("advice"):
            lines.append(f"{indent}{finding['advice']}")
    return "\n".join(lines)


def word(finding: Finding) -> str:
    """Its status; a warning that nothing can be done about is a note."""
    return "note" if finding.get("note") else str(finding["status"])
