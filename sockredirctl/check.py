"""`sockredirctl check`: how the kernel behaves, and what on this host matters to acceleration."""

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
    """Raises ClientError if a check fails, after all of them are shown."""
    async with progress.shown("trying out the kernel, and looking for problems"):
        findings: list[Finding] = await client.call("Check")
    if arguments.json:
        print(json.dumps(findings), flush=True)
    else:
        shown = text(render.printable(findings), table.width(arguments))
        table.show(shown, pager=not arguments.no_pager)
    failed = [finding["name"] for finding in findings if finding["status"] == "fail"]
    if failed:
        raise ClientError(f"this kernel is not fit for acceleration: it fails {', '.join(failed)}")


def text(findings: list[Finding], width: int | None = None) -> str:
    """The findings: one line each, so that they can be searched, or wrapped to `width` columns.

    The advice of a finding, which is something to type, is on a line of its own.
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
    """The status to show: a warning that nothing can be done about is a note."""
    return "note" if finding.get("note") else str(finding["status"])
